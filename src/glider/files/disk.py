"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from glider.errors import DataError, ExpertError
from glider.files.held import held
from glider.files.json_text import LARGEST_JSON as LARGEST_JSON
from glider.files.json_text import read_json as read_json
from glider.files.opening import opened
from glider.files.opening import sha256 as sha256
from glider.files.replacing import flush_directory, is_directory, replace_directory, work_beside

if TYPE_CHECKING:
    from torch import Tensor


def refuse_links_out(directory: Path, files: Iterable[str]) -> None:
    """Raise `ExpertError` for a file that is a link out of its directory, or of the hub cache that it lies in."""
    for file in files:
        if leads_out(directory / file):
            raise ExpertError(f"the file {directory / file} itself", "a link out of the directory", "Copy the file.")


def leads_out(place: Path) -> bool:
    """Whether a file is a link out of its directory, or of the hub cache that it lies in."""
    if not place.is_symlink():
        return False
    target = Path(os.path.realpath(place))
    return os.path.realpath(place.parent) != str(target.parent) and not within_hub_cache(place.parent, target)


def within_hub_cache(directory: Path, target: Path) -> bool:
    """Whether a link of a directory leads to a file of the hub repository's cache that both lie in.

    There everything is a link: `models--NAME/snapshots/COMMIT/FILE` to `models--NAME/blobs/HASH`.
    """
    real = Path(os.path.realpath(directory))
    lineage = [real, *real.parents]
    for snapshots, repository in itertools.pairwise(lineage):
        if snapshots.name == "snapshots" and repository.name.startswith("models--"):
            return target.parent == repository / "blobs"
    return False


def canonical_json(value: Any) -> str:
    """The one text of a JSON value that hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    write_file(path, lambda partial: partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf8"))


def write_file(path: Path, write: Callable[[Path], Any], mode: int = 0o644, fresh: bool = False) -> None:
    """Let `write` fill a file of that name beside `path`, then put it in place; on any failure nothing is left behind.

    A `fresh` file takes nobody's place: `FileExistsError` if there is one, and for a pipe, a socket or a device in any
    case. A full disk, and whatever else the system refuses, is an `OSError` that names `path`. Raises `DataError` for
    text that UTF-8 cannot hold: a path may be of any bytes, and what stands for them in Python is half a character.
    """
    with naming_target(path):
        _refuse_devices(path)
        with existing(path.parent), work_beside(path) as work, naming_target(path, work / path.name):
            partial = work / path.name
            try:
                write(partial)
            except UnicodeEncodeError as fault:
                got = f"half a character in {fault.object[max(0, fault.start - 60) : fault.end]!r}"
                raise DataError(f"text in UTF-8 for {path}", got, "Rename the file whose name it is.") from fault
            _flush(partial)
            partial.chmod(mode)
            if fresh:
                os.link(partial, path)
            else:
                partial.replace(path)
            flush_directory(path.parent)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file; a full disk is the `OSError` that it is, not a serialisation error."""
    from safetensors.torch import save_file

    with naming_target(path):
        save_file(dict(tensors), path, metadata=metadata)
        path.chmod(0o644)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that becomes `path` when the block ends well, and vanishes when it does not.

    An existing `path` is replaced only after the new content is complete; `OSError` for a file, a pipe or a device.
    """
    with naming_target(path):
        _refuse_devices(path)
        if path.is_file() and not path.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        with existing(path.parent), work_beside(path) as work, naming_target(path, work / path.name):
            partial = work / path.name
            partial.mkdir()
            yield partial
            for folder, _, files in os.walk(partial):
                for file in files:
                    _flush(Path(folder, file))
                flush_directory(Path(folder))
            partial.chmod(0o755)
            replace_directory(partial, path)


def work_directory(path: Path) -> Path:
    """A directory to work in that lies where it says, made if there is none; raises `ExpertError` for a link."""
    with naming_target(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # be it by another process, this moment
            path.mkdir()
    if not is_directory(path):
        raise ExpertError(f"a directory {path} to work in", "a link or a file", "Remove it; it is not glider's.")
    return path


@contextmanager
def existing(directory: Path, make: Callable[[Path], Any] | None = None) -> Iterator[None]:
    """Let a directory be there, with its parents; what was made for a block that fails, and is empty, goes again."""
    missing = list(itertools.takewhile(lambda place: not os.path.lexists(place), (directory, *directory.parents)))
    try:
        directory.mkdir(parents=True, exist_ok=True) if make is None else make(directory)
        yield
    except BaseException:
        for place in missing:
            with suppress(OSError):  # not made, or not empty
                place.rmdir()
        raise


@contextmanager
def held_within(root: Path, *names: str) -> Iterator[Path]:
    """A path that leads to `root/NAME/...`, made where there is none, whatever is put in the way until the block ends.

    `root` itself may be a link; raises `ExpertError` for one below it.
    """
    with ExitStack() as stack:
        with naming_target(root):
            stack.enter_context(existing(root))
        place = stack.enter_context(held(root.resolve() if root.is_symlink() else root))
        for name in names:
            stack.enter_context(existing(place := place / name, work_directory))
            place = stack.enter_context(held(place))
        yield place


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file's content; raises `OSError` and `UnfitFile` (`ValueError`) as `opened`."""
    with opened(source) as descriptor, os.fdopen(os.dup(descriptor), "rb") as content, target.open("xb") as copy:
        shutil.copyfileobj(content, copy, 1 << 20)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory into an empty one, links as links; raises `ExpertError` for a pipe, a socket or a device."""
    for entry in sorted(source.iterdir()):
        copy = target / entry.name
        if entry.is_symlink():
            copy.symlink_to(entry.readlink())
        elif entry.is_dir():
            copy.mkdir()
            copy_tree(entry, copy)
        else:
            try:
                copy_file(entry, copy)
            except ValueError as fault:
                raise ExpertError(f"files alone in {source}", f"{entry}, {fault}", "Remove it.") from fault
            copy.chmod(entry.stat().st_mode & 0o777)


def _refuse_devices(path: Path) -> None:
    """Raise `FileExistsError` where a file would take the place of a pipe, a socket or a device (`/dev/null`)."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there, or a link to nothing
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise FileExistsError(errno.EEXIST, "A pipe, a socket or a device is there", str(path))


@contextmanager
def naming_target(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Let what the system refuses name the file that was to be written, not the one it is written as at first."""
    try:
        yield
    except SafetensorError as fault:
        code = re.search(r"os error (\d+)", str(fault))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from fault
    except OSError as fault:
        if fault.errno is None or (fault.filename is not None and partial is None):
            raise
        named = None if fault.filename is None else Path(os.fsdecode(fault.filename))
        if named is None:
            target = path
        elif partial is not None and named.is_relative_to(partial.parent):
            target = path / named.relative_to(partial) if named.is_relative_to(partial) else path
        else:
            raise
        raise OSError(fault.errno, fault.strerror, str(target)) from fault


def _flush(path: Path) -> None:
    if path.is_symlink() or not path.is_file():
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())
