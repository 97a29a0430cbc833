"""Sharing experts and pools through a model hub, with `huggingface_hub`.

What is pushed is verified, and is what lies on disk plus a model card. What is pulled is distrusted: only files that
an expert or a pool has are fetched, beside the target, and the target appears once they have passed `verify`.
"""

import functools
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.hf_api import RepoFile

import glider
from glider.errors import ExpertError, GliderWarning, PoolError
from glider.experts.base_identity import BaseIdentity
from glider.experts.card import CARD_FILE, LARGEST_CARD
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.index import BACKGROUND_FILE, PoolIndex
from glider.experts.membership import read_index, require_future
from glider.experts.peft_format import ADAPTER_CONFIG_FILE, LARGEST_CONFIG
from glider.experts.pool import POOL_FILE, Pool
from glider.experts.router_files import router_path
from glider.experts.trust import read_signature
from glider.files.disk import copy_file, new_directory
from glider.files.headers import read_header
from glider.files.json_text import LARGEST_JSON
from glider.files.opening import from_home
from glider.sharing.hub_faults import Error, hub_faults_as
from glider.sharing.model_card import expert_model_card, pool_model_card
from glider.sharing.signature import SIGNATURE_FILE

MODEL_CARD_FILE = "README.md"
_MOST = {POOL_FILE: LARGEST_JSON, CARD_FILE: LARGEST_CARD, ADAPTER_CONFIG_FILE: LARGEST_CONFIG}  # bytes
_MOST_LISTED = 100_000  # entries of a repository
_COMMIT = re.compile(r"[0-9a-f]{40}")


def push_expert(
    expert: Expert, repo_id: str, private: bool = False, token: str | None = None, revision: str | None = None
) -> str:
    """Upload an expert and its model card in one commit; returns the commit's address. Or copy them into a new folder,
    where `repo_id` is a path that begins with `.`, `/` or `~`.

    The repository is made if there is none (`private` counts only then), and so is the branch `revision`. Raises
    `ExpertError` for a damaged expert and for whatever the hub refuses.
    """
    expert.verify()
    _tell_of_path(expert.card.base)
    files = {file: expert.directory / file for file in EXPERT_FILES}
    readme = expert_model_card(expert.card, _title(repo_id))
    return _push(files, readme, repo_id, private, token, revision, f"Upload expert {expert.name}", ExpertError)


def pull_expert(repo_id: str, out: Path | str, revision: str | None = None, token: str | None = None) -> Expert:
    """Download an expert to the new directory `out`, verified before it appears there.

    `revision` is a branch, a tag or, to be sure of the content, a commit. Raises `ExpertError`.
    """
    out = _vacant(out, ExpertError)
    require_future(out)
    fetch = _fetching(repo_id, revision, token, ExpertError)
    with new_directory(out) as partial, _named_after(repo_id, partial):
        fetch(EXPERT_FILES, partial)
        Expert.open(partial).verify()
    return Expert.open(out)


def push_pool(
    pool: Pool, repo_id: str, private: bool = False, token: str | None = None, revision: str | None = None
) -> str:
    """Upload a pool, its experts, its own background and its signature if there are some, and a model card in one
    commit; as `push_expert`, and `PoolError` for a signature that is no file of a signature's size."""
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
    message = f"Upload a pool of {len(pool)} experts"
    return _push(files, pool_model_card(pool, _title(repo_id)), repo_id, private, token, revision, message, PoolError)


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
    fetch = _fetching(repo_id, revision, token, PoolError)
    with new_directory(out) as partial, _named_after(repo_id, partial):
        fetch((POOL_FILE,), partial, optional=(SIGNATURE_FILE,))
        index = read_index(partial, require_key)
        names = [f"{record.home}/{file}" for record in index.experts for file in EXPERT_FILES]  # none leaves the pool
        if index.verdicts is not None and index.verdicts.background is not None:
            names.append(BACKGROUND_FILE)
        names += _router_files(index)
        fetch(names, partial, sizes=_sizes(index))
        Pool.open(partial, require_key).verify()
    return Pool.open(out, require_key)


def folder_of(repo_id: str) -> Path | None:
    """The folder that a target names in place of a repository: a path that begins with `.`, `/` or `~`."""
    return from_home(repo_id) if repo_id.startswith((".", "/", "~")) else None


def _title(repo_id: str) -> str:
    """What a model card calls a repository, or a folder, whose path is nobody's business."""
    folder = folder_of(repo_id)
    return repo_id if folder is None else folder.resolve().name


def _fetching(repo_id: str, revision: str | None, token: str | None, error: Error) -> Callable[..., None]:
    """Gets files by their names into a directory: from one commit of a repository, or from a folder."""
    folder = folder_of(repo_id)
    if folder is None:
        api = _client(token)
        return functools.partial(_fetch, api, repo_id, _resolve(api, repo_id, revision, error), error)
    if revision is not None:
        raise error("a revision of a repository", f"one of the folder {folder}", "Leave --revision out.")
    return functools.partial(_copy, folder, error)


def _write_folder(files: Mapping[str, Path], readme: str, folder: Path, revision: str | None, error: Error) -> str:
    """Copy files and the model card into a new folder."""
    if revision is not None:
        raise error("a branch of a repository", f"one of the folder {folder}", "Leave --revision out.")
    if os.path.lexists(folder):
        raise error(f"a new folder at {folder}", "an existing one", "Remove it or give another one.")
    with new_directory(folder) as target:
        for name, path in files.items():
            (target / name).parent.mkdir(exist_ok=True)
            copy_file(path, target / name)
        (target / MODEL_CARD_FILE).write_text(readme, "utf8")
    return str(folder)


def _copy(
    folder: Path,
    error: Error,
    files: Sequence[str],
    target: Path,
    optional: Sequence[str] = (),
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Copy these files and no other out of a folder; raises `error` if one is missing, is no plain file, or is larger
    than its kind or the pool's record (`sizes`) says: all are looked at before any is copied."""
    names = [name for name in (*files, *optional) if name in files or os.path.lexists(folder / name)]
    for name in names:
        source = folder / name
        if not source.is_file() or source.resolve() != folder.resolve() / name:
            got = "a link or a directory" if os.path.lexists(source) else "none"
            raise error(f"the file {name} in {folder}", got, "Ask its author; glider cannot use it.")
        _require_bytes(name, str(folder), source.stat().st_size, sizes, error)
        if source.suffix == ".safetensors":
            read_header(source)  # which says how long the file is
    for name in names:
        source = folder / name
        (target / name).parent.mkdir(exist_ok=True)
        copy_file(source, target / name)


def _sizes(index: PoolIndex) -> dict[str, int]:
    """Bytes of the files of experts and of trained routers, as their pool has them."""
    sizes = {f"{record.home}/{file}": one.size for record in index.experts for file, one in record.files.items()}
    return sizes | {router_path(Path(), kind).as_posix(): one.size for kind, one in (index.routers or {}).items()}


def _require_bytes(name: str, home: str, size: int, sizes: Mapping[str, int] | None, error: Error) -> None:
    """Raise `error` for a file that is larger than it may be, before it takes the disk: one of holes has any size."""
    most = (sizes or {}).get(name, _MOST.get(name.rsplit("/", 1)[-1]))
    if most is not None and size > most:
        raise error(f"{name} in {home} of at most {most} bytes", f"{size}", "Ask its author; glider cannot use it.")


def _tell_of_path(base: BaseIdentity) -> None:
    """Warn of the directory that what is pushed names: it says nothing elsewhere, and something of its author."""
    if base.path is not None:
        text = f"the files name the directory of the base model, {base.path}: import or train by its hub id to avoid it"
        warnings.warn(text, GliderWarning, stacklevel=3)


def _router_files(index: PoolIndex) -> list[str]:
    return [router_path(Path(), kind).as_posix() for kind in index.routers or {}]


def _client(token: str | None) -> HfApi:
    return HfApi(token=token, library_name="glider", library_version=glider.__version__)


def _vacant(out: Path | str, error: Error) -> Path:
    out = Path(os.path.abspath(out))  # noqa: PTH100  (links in the path stay as the user gave them)
    if os.path.lexists(out):
        raise error(f"a new directory at {out}", "an existing one", "Remove it or give another --out.")
    return out


def _push(
    files: Mapping[str, Path],
    readme: str,
    repo_id: str,
    private: bool,
    token: str | None,
    revision: str | None,
    message: str,
    error: Error,
) -> str:
    if (folder := folder_of(repo_id)) is not None:
        return _write_folder(files, readme, folder, revision, error)
    api = _client(token)
    additions = [CommitOperationAdd(name, path) for name, path in files.items()]
    additions.append(CommitOperationAdd(MODEL_CARD_FILE, readme.encode()))
    with hub_faults_as(f"to push to {repo_id}", error):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(repo_id, additions, commit_message=message, revision=revision)
    return commit.commit_url


def _resolve(api: HfApi, repo_id: str, revision: str | None, error: Error) -> str:
    """The commit that a revision is now, so that all files come from one."""
    with hub_faults_as(f"to pull {repo_id}{f' at {revision}' if revision else ''}", error):
        commit = api.model_info(repo_id, revision=revision).sha
    if commit is None or not _COMMIT.fullmatch(commit):  # it becomes part of a path
        raise error(f"to pull {repo_id}", f"an answer with commit {commit!r}", "Check HF_ENDPOINT; this is no hub.")
    return commit


def _fetch(
    api: HfApi,
    repo_id: str,
    commit: str,
    error: Error,
    files: Sequence[str],
    target: Path,
    optional: Sequence[str] = (),
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Download these files and no other into `target`; raises `error` if one is missing, is no plain file, or by the
    hub's list is larger than its kind or the pool's record (`sizes`) says: all are looked at before any is fetched."""
    if not files:
        return
    with hub_faults_as(f"to pull {repo_id}", error):
        for number, entry in enumerate(api.list_repo_tree(repo_id, recursive=True, revision=commit)):
            if number == _MOST_LISTED:
                got = f"more in {repo_id}"
                raise error(f"at most {_MOST_LISTED} entries", got, "Ask its author; glider cannot use it.")
            if isinstance(entry, RepoFile) and entry.path in {*files, *optional}:
                _require_bytes(entry.path, repo_id, entry.size, sizes, error)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as scratch:
        arrived = Path(scratch).resolve() / "files"
        with hub_faults_as(f"to pull {repo_id}", error):
            api.snapshot_download(
                repo_id,
                revision=commit,
                local_dir=arrived,
                cache_dir=Path(scratch) / "cache",
                allow_patterns=[*files, *optional],
            )
        for name in (*files, *optional):
            source = arrived / name
            if name in optional and not os.path.lexists(source):
                continue
            if not source.is_file() or source.resolve() != source:
                got = "a link or a directory" if os.path.lexists(source) else "none"
                raise error(f"the file {name} in {repo_id}", got, "Ask its author; glider cannot use it.")
            (target / name).parent.mkdir(exist_ok=True)
            source.replace(target / name)


@contextmanager
def _named_after(repo_id: str, partial: Path) -> Iterator[None]:
    """Let faults of what was pulled name the repository's file, not the temporary one."""
    try:
        yield
    except (ExpertError, PoolError) as fault:
        parts = (part.replace(str(partial), repo_id) for part in (fault.wanted, fault.got, fault.remedy))
        raise type(fault)(*parts) from fault
