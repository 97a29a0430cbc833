"""A pool of three experts that keep words of their tasks, its base, and an empty cache."""

from pathlib import Path

import pytest

from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel, load_base


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test."""
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pool(pool_with_profiles) -> Pool:
    return pool_with_profiles(experts=3, alpha=0.5)


@pytest.fixture
def base(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))
