"""Replaces files and directories whole or not at all, even if the process is killed.

What is being written lies in a work directory beside its place, `.NAME.xxxxxxxx.partial`, locked while its process
lives. A new directory changes places with the old one in one step where the system can do that; elsewhere in two, and
the next opening finishes what was cut between them. The next process that writes removes what dead processes left.
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from glider.files.held import open_directory, path_of

try:
    import fcntl
except ImportError:  # no such locks: nothing is swept
    fcntl = None

_WORK = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial")
_OLD = "old"  # within a work directory: what stood in the place before
_OLD_OF_0_1 = "replaced"
_AT_FDCWD, _EXCHANGE = -100, 2
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)
_PATIENCE = 5.0  # seconds to wait for a process that is between its two steps


@contextmanager
def work_beside(place: Path) -> Iterator[Path]:
    """A fresh directory beside `place` that vanishes at the end; the leftovers of dead processes there vanish too.

    Its path leads to it even if another process puts a link in its place (see `files.held`).
    """
    sweep(place.parent)
    work, lock = _make_work(place)
    try:
        yield work if lock is None else path_of(lock, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def replace_directory(new: Path, place: Path) -> None:
    """Put the complete directory `new`, which lies in a work directory beside, into `place`; what was there goes."""
    if not os.path.lexists(place):
        os.rename(new, place)  # noqa: PTH104
    elif not exchange(new, place):
        os.rename(place, new.parent / _OLD)  # noqa: PTH104  (from here on `recover` brings the new one into place)
        os.rename(new, place)  # noqa: PTH104
    flush_directory(place.parent)


def put_directory(new: Path, place: Path) -> None:
    """Put the complete directory `new` from anywhere on the same file system into `place`; what was there goes."""
    if not os.path.lexists(place):
        os.rename(new, place)  # noqa: PTH104
        flush_directory(place.parent)
    elif exchange(new, place):
        flush_directory(place.parent)
        remove_entry(new)
    else:
        with work_beside(place) as work:
            os.rename(new, work / place.name)  # noqa: PTH104
            replace_directory(work / place.name, place)


def remove_entry(entry: Path) -> None:
    """Remove a directory and all in it, or a file; of a link the link alone."""
    if is_directory(entry):
        shutil.rmtree(entry)
    else:
        entry.unlink()


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system or the file system cannot."""
    rename = _renameat2()
    if rename is None:
        return False
    sys.audit("os.rename", str(one), str(other), -1, -1)
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def recover(place: Path) -> None:
    """Finish a replacement of `place` that was cut between its two steps; nothing where there is something."""
    until = time.monotonic() + _PATIENCE
    while not os.path.lexists(place):
        unfinished = [work for work in _works(place.parent, place.name) if os.path.lexists(work / _OLD)]
        if not unfinished or time.monotonic() > until:
            break
        if not any(_settle_dead(work, place) for work in unfinished):
            time.sleep(0.01)  # its process lives, and is about to take the second step
    if not os.path.lexists(place):
        for old in _entries(place.parent):
            if re.fullmatch(re.escape(f".{place.name}.old.") + r"\w{8}", old.name) and (old / _OLD_OF_0_1).is_dir():
                with suppress(OSError):  # version 0.1 was killed between its steps; another process may be faster
                    os.rename(old / _OLD_OF_0_1, place)  # noqa: PTH104


def sweep(directory: Path) -> None:
    """Remove the work directories of processes that are no more; a replacement that one was in is finished first."""
    for work in _works(directory):
        match = _WORK.fullmatch(work.name)
        assert match is not None
        _settle_dead(work, directory / match["name"], remove=True)


def flush_directory(path: Path) -> None:
    """Let the names in a directory outlive a power cut, where the system can do that."""
    with suppress(OSError):  # not every file system lets directories be flushed
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _settle_dead(work: Path, place: Path, remove: bool = False) -> bool:
    """Finish the replacement that a dead process was in; False if it lives, or nobody can tell."""
    lock = _lock(work)
    if lock is None:
        return False
    try:
        if os.path.lexists(work / _OLD) and not os.path.lexists(place):
            whole = work / place.name
            os.rename(whole if os.path.lexists(whole) else work / _OLD, place)  # noqa: PTH104
        if remove:
            shutil.rmtree(work, ignore_errors=True)
    except OSError:
        return False  # another process is faster, or the directory is another's
    finally:
        os.close(lock)
    return True


def _make_work(place: Path) -> tuple[Path, int | None]:
    """A new work directory and the lock on it; None where the file system has no locks, and nobody sweeps."""
    while True:
        work = place.parent / f".{place.name}.{secrets.token_hex(4)}.partial"
        try:
            work.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as fault:
            raise OSError(fault.errno, fault.strerror, str(place)) from fault
        if (lock := _lock(work)) is not None or is_directory(work):
            return work, lock  # else a sweeper was faster than the lock


def _lock(work: Path) -> int | None:
    """A descriptor that locks a work directory, or None if another process has it or it is gone or no directory."""
    if fcntl is None:
        return None
    try:
        descriptor = open_directory(work)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(work)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _works(directory: Path, name: str | None = None) -> list[Path]:
    matches = [(entry, _WORK.fullmatch(entry.name)) for entry in _entries(directory)]
    return [entry for entry, match in matches if match and name in (None, match["name"])]


def _entries(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return [directory / entry.name for entry in entries if entry.name.startswith(".")]
    except OSError:
        return []


@cache
def _renameat2() -> Any:
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # no Linux, or an old C library
        return None
    rename.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return rename


def is_place_of_lock(path: Path) -> bool:
    """Whether a lock may lie there: in place of a link, hard or symbolic, another file would be made, or emptied."""
    try:
        status = os.lstat(path)
        return stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    except OSError:
        return True  # nothing is there


def is_directory(path: Path) -> bool:
    """Whether there is a directory itself, no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False
