"""Trained routers: each is stored, recorded and read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glider.contribute.train_router import train_router
from glider.errors import GliderError, RouterError
from glider.experts.pool import Pool
from glider.experts.router_files import router_path
from glider.experts.trust import SIGNATURE_FILE
from glider.inference.base_model import BaseModel
from glider.inference.spec import ModelSpec
from glider.routing.methods.vq import Vq
from glider.routing.specification import parsed, router_from
from glider.sharing.signature import generate_keys, sign_pool
from glider.testing import check_router

from ...commands import CommandResult
from .rows import rows_of, settings

KINDS = ["joint", "mindskip", "mindskip-attention", "task-moe", "vq", "seqr", "ariadne", "lorauter"]


def plain_scores(base: BaseModel, pool: Pool) -> list[list[float]]:
    """What routers that are not trained beside a pool say."""
    scores = []
    for text in ("phatgoose", "glider(global=examples)", "seqr"):
        model = ModelSpec(router=router_from(*parsed(text))).over(base, pool)
        scores.append([choice.log_likelihood for choice in model.score("the e1 e13 and", ["yes", "no"])])
        model.detach()
    return scores


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_trained_stored_recorded_and_read(base: BaseModel, pool: Pool, kind: str) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    others = plain_scores(base, pool)
    trained = train_router(base, pool, kind, rows_of(), settings())
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in base.model.parameters())
    record = (trained.index.routers or {})[kind]
    assert list(record.experts) == ["e0", "e1", "e2"] and record.settings["steps"] == 4
    again = Pool.open(pool.path)
    again.verify()
    assert not list(router_path(pool.path, kind).parent.glob(".*.training"))
    if kind in ("ariadne", "lorauter"):
        text = f"glider(global={kind})"
    else:
        text = "seqr(norms=calibrated)" if kind == "seqr" else kind
    router = router_from(*parsed(text))
    check_router(router, again, base)
    if kind in ("joint", "vq"):
        check_router(router_from(f"glider+{kind}", {}), again, base)
    assert plain_scores(base, again) == others, "what is trained changes no other router"


def test_what_cannot_be_trained_is_refused(base: BaseModel, pool: Pool) -> None:
    with pytest.raises(RouterError, match="joint"):
        train_router(base, pool, "glider", rows_of(), settings())
    with pytest.raises(GliderError, match="e2"):
        train_router(base, pool, "joint", {"e0": rows_of()["e0"], "e1": rows_of()["e1"]}, settings())


def test_the_command_trains_for_one_pool_and_says_where(
    llama_directory: Path, pool: Pool, tmp_path: Path, glider: Callable[..., CommandResult]
) -> None:
    for name, rows in rows_of().items():
        lines = [json.dumps({"input": row.input, "output": row.output}) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), "utf8")

    def run(*arguments: str) -> tuple[int, str]:
        ended = glider("pool", "train-router", pool.path, "--base", llama_directory, *arguments)
        return ended.code, ended.out + ended.err

    data = str(tmp_path / "{name}.jsonl")
    private, public = tmp_path / "key", tmp_path / "key.pub"
    generate_keys(private, public)
    sign_pool(pool.path, private)
    code, told = run("--router", "vq", "--data", data, "--codes", "3", "--key", str(public))
    assert code == 0 and told.endswith(f"to sign it anew: glider pool sign {pool.path} --key KEY\n")
    (pool.path / SIGNATURE_FILE).unlink()
    code, told = run("--router", "vq", "--data", data, "--codes", "4")
    assert code == 0 and "routers/vq.safetensors" in told and "sign" not in told
    Vq().prepare(Pool.open(pool.path))
    assert run("--router", "nothing", "--data", data)[0] == 2
    code, told = run("--router", "vq", "--data", str(tmp_path / "e0.jsonl"))
    assert code == 2 and "{name}" in told
