"""A pool, and runs over two small sets."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from glider.evaluation.run_plan import RunPlan
from glider.evaluation.runs import Run
from glider.experts.pool import Pool

from .run_files import EVEN, SAY, write


@pytest.fixture(params=["llama", pytest.param("t5", marks=pytest.mark.slow)])
def base_directory(request: pytest.FixtureRequest) -> Path:
    """Both tiny bases in turn, the second in the slow tests: a run is the same work whatever the base."""
    return request.getfixturevalue(f"{request.param}_directory")


@pytest.fixture
def pool(make_pool, base_directory: Path) -> Pool:
    return make_pool(base_directory)


@pytest.fixture
def make_run(pool: Pool, base_directory: Path, tmp_path: Path):
    """`make_run(routers, **settings)`: a run over two small sets, its results in `tmp_path / "out"`."""
    write(tmp_path / "even.jsonl", EVEN)
    write(tmp_path / "e0.jsonl", EVEN[:4])
    write(tmp_path / "say.jsonl", SAY)

    def make(routers: list, **settings: Any) -> Run:
        sets = {"near": {"tasks": ["e*.jsonl"]}, "far": {"tasks": ["say.jsonl"], "max_new_tokens": 3}}
        told = {"pool": str(pool.path), "base": str(base_directory), "routers": routers, "sets": sets, **settings}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
        return Run(RunPlan.read(tmp_path / "run.yaml"), tmp_path, tmp_path / "out")

    return make
