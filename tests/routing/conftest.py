"""A pool of unlike experts for routers to be tried on."""

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from glider.experts.card import EmbedderIdentity
from glider.experts.pool import Pool
from glider.experts.trust import UNSIGNED
from glider.inference.base_model import load_base


@pytest.fixture(scope="session")
def uneven_pool(
    made_pools, random_expert, embedder_identity: EmbedderIdentity, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Path]:
    """`uneven_pool(base_directory)`: ranks 4, 4, 2, scalings 1, 1, 4; the last expert adapts half of the sites.

    It is made once for each base, since no test here changes its files.
    """

    @lru_cache
    def directory(base_directory: Path) -> Path:
        made = made_pools(base_directory, 2, 0, {"embedder": embedder_identity})
        pool = Pool.open(shutil.copytree(made, tmp_path_factory.mktemp("uneven") / "pool"), UNSIGNED)
        settings = {"seed": 7, "rank": 2, "alpha": 8.0, "sites": pool.sites[::2], "embedder": embedder_identity}
        random_expert(pool.path / "half", load_base(str(base_directory)), **settings)
        return pool.add("half").path

    return directory


@pytest.fixture
def pool(base_directory: Path, uneven_pool: Callable[[Path], Path]) -> Pool:
    """The uneven pool of the base, opened anew."""
    return Pool.open(uneven_pool(base_directory), UNSIGNED)
