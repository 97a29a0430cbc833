"""Where experts and pools are pushed to and pulled from: a repository of a model hub, or a folder."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.hf_api import RepoFile

import glider
from glider.experts.card import CARD_FILE, LARGEST_CARD
from glider.experts.index import POOL_FILE
from glider.experts.peft_format import ADAPTER_CONFIG_FILE, LARGEST_CONFIG
from glider.files.disk import copy_file, new_directory
from glider.files.headers import read_header
from glider.files.json_text import LARGEST_JSON
from glider.files.opening import from_home
from glider.sharing.hub_faults import Error, hub_faults_as

MODEL_CARD_FILE = "README.md"
_MOST = {POOL_FILE: LARGEST_JSON, CARD_FILE: LARGEST_CARD, ADAPTER_CONFIG_FILE: LARGEST_CONFIG}  # bytes
_MOST_LISTED = 100_000  # entries of a repository
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REMEDY = "Ask its author; glider cannot use it."


@dataclass(frozen=True)
class FileSelection:
    """Files of a place by their names: those that must be there, others that may, bytes by a record."""

    files: Sequence[str]
    optional: Sequence[str] = ()
    sizes: Mapping[str, int] | None = None

    def require_bytes(self, name: str, home: str, size: int, error: Error) -> None:
        """Raise `error` for a file that is larger than it may be, before it takes the disk: a sparse one may."""
        most = (self.sizes or {}).get(name, _MOST.get(name.rsplit("/", 1)[-1]))
        if most is not None and size > most:
            raise error(f"{name} in {home} of at most {most} bytes", f"{size}", _REMEDY)


class Place(Protocol):
    """What can be pushed to and pulled from."""

    @property
    def title(self) -> str:
        """What a model card calls it."""
        ...

    def write(self, files: Mapping[str, Path], readme: str, message: str) -> str:
        """Put files and a model card there, all or none; returns the address."""
        ...

    def fetch(self, selection: FileSelection, target: Path) -> None:
        """Get these files and no other into `target`.

        Raises an error if one is missing, is no plain file, or is larger than its kind or the record says: all are
        looked at before any is fetched.
        """
        ...


def place_of(name: str, error: Error, revision: str | None, token: str | None, private: bool = False) -> Place:
    """The place that a name is of: a folder, where it is a path that begins with `.`, `/` or `~`, or a repository."""
    folder = folder_of(name)
    if folder is None:
        return Repository(name, error, revision, token, private)
    if revision is not None:
        raise error("a revision of a repository", f"one of the folder {folder}", "Leave --revision out.")
    return Folder(folder, error)


def folder_of(name: str) -> Path | None:
    """The folder that a target names in place of a repository: a path that begins with `.`, `/` or `~`."""
    return from_home(name) if name.startswith((".", "/", "~")) else None


@dataclass(frozen=True)
class Folder:
    """A directory of this machine; a new one, to write to."""

    path: Path
    error: Error

    @property
    def title(self) -> str:
        """Its name: the path is nobody's business."""
        return self.path.resolve().name

    def write(self, files: Mapping[str, Path], readme: str, message: str) -> str:
        """Copy files and the model card into the new folder; returns its path."""
        if os.path.lexists(self.path):
            raise self.error(f"a new folder at {self.path}", "an existing one", "Remove it or give another one.")
        with new_directory(self.path) as target:
            for name, path in files.items():
                (target / name).parent.mkdir(exist_ok=True)
                copy_file(path, target / name)
            (target / MODEL_CARD_FILE).write_text(readme, "utf8")
        return str(self.path)

    def fetch(self, selection: FileSelection, target: Path) -> None:
        """Copy them."""
        optional = [name for name in selection.optional if os.path.lexists(self.path / name)]
        sources = {name: self.path / name for name in (*selection.files, *optional)}
        for name, source in sources.items():
            _require_plain(name, source, self.path.resolve(), str(self.path), self.error)
            selection.require_bytes(name, str(self.path), source.stat().st_size, self.error)
            if source.suffix == ".safetensors":
                read_header(source)  # which says how long the file is
        for name, source in sources.items():
            (target / name).parent.mkdir(exist_ok=True)
            copy_file(source, target / name)


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, at a branch, a tag or a commit; made if there is none, as `private` says."""

    name: str
    error: Error
    revision: str | None
    token: str | None
    private: bool

    @property
    def title(self) -> str:
        """Its name."""
        return self.name

    @cached_property
    def _hub(self) -> HfApi:
        return HfApi(token=self.token, library_name="glider", library_version=glider.__version__)

    @cached_property
    def _commit(self) -> str:
        """What the revision is now, so that all files come from one."""
        with self._faults(f" at {self.revision}" if self.revision else ""):
            commit = self._hub.model_info(self.name, revision=self.revision).sha
        if commit is None or not _COMMIT.fullmatch(commit):  # it becomes part of a path
            got = f"an answer with commit {commit!r}"
            raise self.error(f"to pull {self.name}", got, "Check HF_ENDPOINT; this is no hub.")
        return commit

    def write(self, files: Mapping[str, Path], readme: str, message: str) -> str:
        """Upload them in one commit; returns the commit's address."""
        additions = [CommitOperationAdd(name, path) for name, path in files.items()]
        additions.append(CommitOperationAdd(MODEL_CARD_FILE, readme.encode()))
        with hub_faults_as(f"to push to {self.name}", self.error):
            self._hub.create_repo(self.name, private=self.private, exist_ok=True)
            if self.revision is not None:
                self._hub.create_branch(self.name, branch=self.revision, exist_ok=True)
            commit = self._hub.create_commit(self.name, additions, commit_message=message, revision=self.revision)
        return commit.commit_url

    def fetch(self, selection: FileSelection, target: Path) -> None:
        """Download them."""
        commit = self._commit
        if not selection.files:
            return
        names = [*selection.files, *selection.optional]
        with self._faults():
            self._require_listed_bytes(selection, commit)
        with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as scratch:
            arrived, cache = Path(scratch).resolve() / "files", Path(scratch) / "cache"
            with self._faults():
                self._hub.snapshot_download(
                    self.name, revision=commit, local_dir=arrived, cache_dir=cache, allow_patterns=names
                )
            for name in names:
                source = arrived / name
                if name in selection.optional and not os.path.lexists(source):
                    continue
                _require_plain(name, source, arrived, self.name, self.error)
                (target / name).parent.mkdir(exist_ok=True)
                source.replace(target / name)

    def _require_listed_bytes(self, selection: FileSelection, commit: str) -> None:
        for number, entry in enumerate(self._hub.list_repo_tree(self.name, recursive=True, revision=commit)):
            if number == _MOST_LISTED:
                raise self.error(f"at most {_MOST_LISTED} entries", f"more in {self.name}", _REMEDY)
            if isinstance(entry, RepoFile) and entry.path in {*selection.files, *selection.optional}:
                selection.require_bytes(entry.path, self.name, entry.size, self.error)

    @contextmanager
    def _faults(self, more: str = "") -> Iterator[None]:
        with hub_faults_as(f"to pull {self.name}{more}", self.error):
            yield


def _require_plain(name: str, source: Path, home: Path, place: str, error: Error) -> None:
    """Raise `error` where a file is none, or lies elsewhere than it says."""
    if not source.is_file() or source.resolve() != home / name:
        got = "a link or a directory" if os.path.lexists(source) else "none"
        raise error(f"the file {name} in {place}", got, _REMEDY)
