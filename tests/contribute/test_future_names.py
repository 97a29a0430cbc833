"""Names of experts that no pool could take up are told before anything is trained or fetched."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from glider.contribute.adopt import adopt
from glider.contribute.protocol import train_expert
from glider.contribute.settings import TrainConfig
from glider.errors import ExpertError, PoolError
from glider.experts.pool import Pool
from glider.sharing.hub import pull_expert


def no_step(*_: object) -> None:
    raise AssertionError("it trains")


@pytest.mark.parametrize("name", ["routers", "README.md", "E0"])
def test_a_name_that_the_pool_around_cannot_take_is_refused_before_training(
    make_pool: Callable[..., Pool], llama_directory: Path, tmp_path: Path, name: str
):
    """An expert `routers` was trained for minutes, and then no pool took it."""
    pool, quick = make_pool(llama_directory, 1), TrainConfig.model_validate({"rank": 2, "steps": 2, "batch_size": 4})
    rows = [json.dumps({"input": f"say {number}", "output": "x"}) for number in range(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    refusal = r"another name of an expert's directory"
    with pytest.raises(PoolError, match=refusal):
        train_expert(tmp_path / "rows.jsonl", str(llama_directory), pool.path / name, quick, report=no_step)
    with pytest.raises(PoolError, match=refusal):
        adopt(pool.path / "e0", str(llama_directory), pool.path / name, quick)
    with pytest.raises(PoolError, match=refusal):
        pull_expert(str(pool.path / "e0"), pool.path / name)
    assert {entry.name for entry in pool.path.iterdir() if entry.is_dir()} == {"e0"}


def test_a_link_to_nothing_is_not_replaced(llama_directory: Path, make_pool: Callable[..., Pool], tmp_path: Path):
    """It may lead to a disk that is not there at the moment; an expert, or a pool, took its place."""
    pool, quick = make_pool(llama_directory, 1), TrainConfig.model_validate({"rank": 2, "steps": 2, "batch_size": 4})
    out = tmp_path / "new"
    out.symlink_to("nowhere")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"input": f"say {i}", "output": "x"}) for i in range(16)))
    refusal = "wanted a new directory at .*new; got an existing one"
    with pytest.raises(ExpertError, match=refusal):
        train_expert(tmp_path / "rows.jsonl", str(llama_directory), out, quick, report=no_step)
    with pytest.raises(ExpertError, match=refusal):
        adopt(pool.path / "e0", str(llama_directory), out, quick)
    assert out.readlink() == Path("nowhere")
