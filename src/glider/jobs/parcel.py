"""Files as bytes, for machines that share no file system."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from glider.errors import ConfigError
from glider.files.disk import new_directory, refuse_links_out
from glider.files.opening import opened, refuse_holes
from glider.files.replacing import is_directory


@dataclass(frozen=True)
class Source:
    """A file that a job reads, or a directory with those of the named files that exist."""

    path: Path
    names: tuple[str, ...] = ()

    def pack(self) -> "Parcel":
        """The content; raises `ConfigError` for a missing or unreadable file."""
        if not self.names:
            return Parcel(((self.path.name, _content(self.path)),), self.path.name)
        refuse_links_out(self.path, self.names)
        present = [name for name in self.names if (self.path / name).exists()]
        return Parcel(tuple((name, _content(self.path / name)) for name in present))

    def at(self, path: Path) -> "Source":
        """The same files in another place."""
        return Source(path, self.names)


@dataclass(frozen=True)
class Parcel:
    """Files by their paths inside a directory; `name` is that of the one file, where it is no directory."""

    files: tuple[tuple[str, bytes], ...] = ()
    name: str = ""

    @classmethod
    def of(cls, directory: Path) -> "Parcel":
        """Everything in a directory except files being written; empty if there is no directory."""
        return cls(tuple((str(path.relative_to(directory)), _content(path)) for path in _files(directory)))

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(len(content) for _, content in self.files)

    @property
    def digest(self) -> str:
        """Hash of the files' names and contents."""
        digest = hashlib.sha256()
        for name, content in self.files:
            digest.update(f"{len(name)} {name} {len(content)} ".encode())
            digest.update(content)
        return digest.hexdigest()

    def unpack(self, place: Path) -> Path:
        """Put the files into `place`, whole or not at all; returns the directory, or the one file in it."""
        with new_directory(place) as partial:
            for name, content in self.files:
                path = partial / _inside(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return place / self.name if self.name else place


def state_of(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """The state of a directory's files: names, times and sizes."""
    state = []
    for path in _files(directory):
        status = path.stat()
        state.append((str(path), status.st_mtime_ns, status.st_size))
    return tuple(state)


def _files(directory: Path) -> Iterator[Path]:
    """Regular files, in order; no links, and nothing that another process is writing."""
    if not is_directory(directory):
        return
    for folder, folders, files in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.endswith(".partial"))
        for file in sorted(files):
            path = Path(folder, file)
            if path.is_file() and not path.is_symlink():
                yield path


def _content(path: Path) -> bytes:
    try:
        with opened(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
            refuse_holes(descriptor)
            return file.read()
    except FileNotFoundError:
        raise ConfigError(f"the file {path}", "no such file", "Check the path.") from None
    except (OSError, ValueError) as fault:
        raise ConfigError(f"the file {path}", str(fault), "Check the file.") from fault


def _inside(name: str) -> Path:
    """The path, checked to stay inside."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise ConfigError("paths inside a directory", repr(name), "Send other files.")
    return Path(*path.parts)
