"""The files of a pool's directory that must be where the pool is used."""

from functools import lru_cache
from pathlib import Path

from glider.experts.index import BACKGROUND_FILE
from glider.experts.pool import POOL_FILE, Pool
from glider.experts.router_files import router_path
from glider.experts.trust import SIGNATURE_FILE
from glider.jobs.parcel import Source


def pool_source(pool: Pool) -> Source:
    """The index with its files, and every expert's files."""
    files = [f"{record.home}/{name}" for record in pool.index.experts for name in record.files]
    files += [router_path(Path(), kind).as_posix() for kind in pool.index.routers or {}]
    return Source(pool.path, (POOL_FILE, SIGNATURE_FILE, BACKGROUND_FILE, *files))


@lru_cache(maxsize=4)
def source_of(path: str, require_key: str | None, pool_hash: str) -> Source:
    """The same by the pool's path, once for a state of it."""
    return pool_source(Pool.open(path, None if require_key is None else Path(require_key)))
