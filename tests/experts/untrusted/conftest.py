"""A pool of two experts, anew for each test."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from glider.experts.card import EmbedderIdentity
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel, load_base

from .forms import Q


@pytest.fixture(scope="module")
def llama(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))


@pytest.fixture(scope="module")
def pristine(
    tmp_path_factory: pytest.TempPathFactory,
    llama: BaseModel,
    random_expert: Callable[..., Expert],
    embedder_identity: EmbedderIdentity,
) -> Path:
    """A pool of the experts a and b."""
    pool = Pool.create(tmp_path_factory.mktemp("pristine") / "pool", llama.identity)
    for seed, name in enumerate("ab"):
        random_expert(pool.path / name, llama, seed=seed, sites=[Q], embedder=embedder_identity)
        pool = pool.add(name)
    return pool.path


@pytest.fixture
def pool(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the pool, free to be damaged."""
    return shutil.copytree(pristine, tmp_path / "pool")
