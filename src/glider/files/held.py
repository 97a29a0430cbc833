"""Directories held by their descriptors: whatever takes the place of one, the work goes on in that very directory.

A path is looked up anew at every step, so that who may write beside a directory can put a link in its place between
two steps. The system's own name of an open descriptor (`/proc/self/fd`, of Linux) leads to what was opened; elsewhere
the path itself has to do.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glider.errors import ConfigError, GliderError

try:
    import fcntl
except ImportError:  # no such locks
    fcntl = None

_DESCRIPTORS = Path("/proc/self/fd")
_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def open_directory(directory: Path) -> int:
    """A descriptor of a directory, which the caller closes; `OSError` for a link to one, and for anything else."""
    return os.open(directory, _FLAGS)


def path_of(descriptor: int, directory: Path) -> Path:
    """A path that leads to an opened directory whatever takes its place, or its own where the system has no such."""
    path = _DESCRIPTORS / str(descriptor)
    try:
        return path if os.path.samestat(path.stat(), os.fstat(descriptor)) else directory
    except OSError:  # no Linux, or no /proc
        return directory


@contextmanager
def held(directory: Path) -> Iterator[Path]:
    """A path that leads to this very directory until the block ends; errors name the directory as it was given.

    Raises `OSError` for a link to a directory, and for anything else that is none.
    """
    try:
        descriptor = open_directory(directory)
    except PermissionError:
        if os.name != "nt":
            raise
        yield directory  # Windows opens no directories
        return
    path = path_of(descriptor, directory)
    try:
        yield path
    except OSError as fault:
        named = None if fault.filename is None else Path(os.fsdecode(fault.filename))
        if path == directory or fault.errno is None or named is None or not named.is_relative_to(path):
            raise
        raise OSError(fault.errno, fault.strerror, str(directory / named.relative_to(path))) from fault
    except GliderError as fault:
        parts = (fault.wanted, fault.got, fault.remedy)
        if path == directory or not any(str(path) in part for part in parts) or not _has_three_parts(fault):
            raise
        raise type(fault)(*(part.replace(str(path), str(directory)) for part in parts)) from fault
    finally:
        os.close(descriptor)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Be the one process that works in a directory, which the block may remove; `ConfigError` while there is another.

    Where the system or the file system has no locks, nobody is told.
    """
    if fcntl is None:
        yield
        return
    descriptor = open_directory(directory)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = not os.path.lexists(directory) or not os.path.samestat(os.fstat(descriptor), os.lstat(directory))
            if gone:  # by the one that was at work until now
                raise BlockingIOError
        except BlockingIOError:
            got, remedy = "another one at work", "Wait for it, or give another directory."
            raise ConfigError(f"one process that works in {directory}", got, remedy) from None
        except OSError as fault:
            if fault.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EINVAL):
                raise
        yield
    finally:
        os.close(descriptor)


def _has_three_parts(fault: GliderError) -> bool:
    """Whether the error is made of its three parts alone, and so can be made again."""
    return type(fault).__init__ is GliderError.__init__


def empty(directory: Path) -> None:
    """Remove all in a directory; of links the links alone."""
    from glider.files.replacing import remove_entry

    for entry in list(directory.iterdir()):
        remove_entry(entry)
