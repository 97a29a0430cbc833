"""A pool to share, and a place to pull to."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel, load_base

from .repositories import Q


@pytest.fixture(scope="module")
def llama(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, llama: BaseModel, random_expert: Any) -> Pool:
    """A pool of two experts, not to be changed."""
    pool = Pool.create(tmp_path_factory.mktemp("pristine") / "pool", llama.identity)
    for i in range(2):
        random_expert(pool.path / f"e{i}", llama, seed=i, sites=[Q])
        pool = pool.add(f"e{i}")
    return pool


@pytest.fixture
def pool(pristine: Pool, tmp_path: Path) -> Pool:
    return Pool.open(shutil.copytree(pristine.path, tmp_path / "source"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a pull goes: the only thing in its directory."""
    (tmp_path / "pulled").mkdir()
    return tmp_path / "pulled" / "thing"
