"""Sharing experts and pools through a model hub or a folder.

What is pushed is verified, and is what lies on disk plus a model card. What is pulled is distrusted: only files that
an expert or a pool has are fetched, beside the target, and the target appears once they have passed `verify`.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glider.errors import ExpertError, GliderWarning, PoolError
from glider.experts.base_identity import BaseIdentity
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.index import BACKGROUND_FILE, PoolIndex
from glider.experts.membership import read_index, require_future
from glider.experts.pool import POOL_FILE, Pool
from glider.experts.router_files import router_path
from glider.experts.trust import read_signature
from glider.files.disk import new_directory
from glider.sharing.hub_faults import Error
from glider.sharing.model_card import expert_model_card, pool_model_card
from glider.sharing.places import FileSelection, place_of
from glider.sharing.signature import SIGNATURE_FILE


def push_expert(
    expert: Expert, repo_id: str, private: bool = False, token: str | None = None, revision: str | None = None
) -> str:
    """Upload an expert and its model card in one commit; returns the commit's address. Or copy them into a new folder,
    where `repo_id` is a path that begins with `.`, `/` or `~`.

    The repository is made if there is none (`private` counts only then), and so is the branch `revision`. Raises
    `ExpertError` for a damaged expert and for whatever the hub refuses.
    """
    place = place_of(repo_id, ExpertError, revision, token, private)
    expert.verify()
    _tell_of_path(expert.card.base)
    files = {file: expert.directory / file for file in EXPERT_FILES}
    return place.write(files, expert_model_card(expert.card, place.title), f"Upload expert {expert.name}")


def pull_expert(repo_id: str, out: Path | str, revision: str | None = None, token: str | None = None) -> Expert:
    """Download an expert to the new directory `out`, verified before it appears there.

    `revision` is a branch, a tag or, to be sure of the content, a commit. Raises `ExpertError`.
    """
    out = _vacant(out, ExpertError)
    require_future(out)
    place = place_of(repo_id, ExpertError, revision, token)
    with new_directory(out) as partial, _named_after(repo_id, partial):
        place.fetch(FileSelection(EXPERT_FILES), partial)
        Expert.open(partial).verify()
    return Expert.open(out)


def push_pool(
    pool: Pool, repo_id: str, private: bool = False, token: str | None = None, revision: str | None = None
) -> str:
    """Upload a pool, its experts, its own background and its signature if there are some, and a model card in one
    commit; as `push_expert`, and `PoolError` for a signature that is no file of a signature's size."""
    place = place_of(repo_id, PoolError, revision, token, private)
    pool.verify()
    names = [POOL_FILE, *(f"{record.home}/{file}" for record in pool.index.experts for file in EXPERT_FILES)]
    if os.path.lexists(pool.path / SIGNATURE_FILE):
        read_signature(pool.path / SIGNATURE_FILE)
        names.append(SIGNATURE_FILE)
    if pool.background is not None:
        names.append(BACKGROUND_FILE)
    names += _router_files(pool.index)
    files = {name: pool.path / name for name in names}
    _tell_of_path(pool.index.base)
    return place.write(files, pool_model_card(pool, place.title), f"Upload a pool of {len(pool)} experts")


def pull_pool(
    repo_id: str,
    out: Path | str,
    revision: str | None = None,
    token: str | None = None,
    require_key: Path | None = None,
) -> Pool:
    """Download a pool to the new directory `out`, verified before it appears there.

    With `require_key`, a file of public keys (default: `$GLIDER_TRUSTED_KEYS`), the signature of one of their owners is
    checked before any expert is fetched. Raises `PoolError` or `ExpertError`.
    """
    out = _vacant(out, PoolError)
    place = place_of(repo_id, PoolError, revision, token)
    with new_directory(out) as partial, _named_after(repo_id, partial):
        place.fetch(FileSelection((POOL_FILE,), optional=(SIGNATURE_FILE,)), partial)
        index = read_index(partial, require_key)
        names = [f"{record.home}/{file}" for record in index.experts for file in EXPERT_FILES]  # none leaves the pool
        if index.verdicts is not None and index.verdicts.background is not None:
            names.append(BACKGROUND_FILE)
        names += _router_files(index)
        place.fetch(FileSelection(names, sizes=_sizes(index)), partial)
        Pool.open(partial, require_key).verify()
    return Pool.open(out, require_key)


def _sizes(index: PoolIndex) -> dict[str, int]:
    """Bytes of the files of experts and of trained routers, as their pool has them."""
    sizes = {f"{record.home}/{file}": one.size for record in index.experts for file, one in record.files.items()}
    return sizes | {router_path(Path(), kind).as_posix(): one.size for kind, one in (index.routers or {}).items()}


def _tell_of_path(base: BaseIdentity) -> None:
    """Warn of the directory that what is pushed names: it says nothing elsewhere, and something of its author."""
    if base.path is not None:
        text = f"the files name the directory of the base model, {base.path}: import or train by its hub id to avoid it"
        warnings.warn(text, GliderWarning, stacklevel=3)


def _router_files(index: PoolIndex) -> list[str]:
    return [router_path(Path(), kind).as_posix() for kind in index.routers or {}]


def _vacant(out: Path | str, error: Error) -> Path:
    out = Path(os.path.abspath(out))  # noqa: PTH100  (links in the path stay as the user gave them)
    if os.path.lexists(out):
        raise error(f"a new directory at {out}", "an existing one", "Remove it or give another --out.")
    return out


@contextmanager
def _named_after(repo_id: str, partial: Path) -> Iterator[None]:
    """Let faults of what was pulled name the repository's file, not the temporary one."""
    try:
        yield
    except (ExpertError, PoolError) as fault:
        parts = (part.replace(str(partial), repo_id) for part in (fault.wanted, fault.got, fault.remedy))
        raise type(fault)(*parts) from fault
