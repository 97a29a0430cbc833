"""The one way to open a file that somebody else may have laid there.

Only regular files, never waiting (a pipe without a writer blocks an ordinary `open` for ever), never more bytes than
the caller allows. What is read is read from the descriptor that was checked, not from the path again.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BLOCK = 1 << 20
_MOST_HOLES, _HOLES_OF_DATA = 256 << 20, 16  # bytes, and times what is there: zeros of files that were meant
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class UnfitFile(ValueError):
    """A file that is not of the kind or the size it should be; the message says what it is instead."""


def open_descriptor(path: Path | str, *, follow: bool = True) -> int:
    """A descriptor of a regular file, to read; the caller closes it.

    Raises `OSError` where there is none or it may not be read, `UnfitFile` for anything but a regular file. Without
    `follow` a link is no file either.
    """
    if not stat.S_ISREG((os.stat if follow else os.lstat)(path).st_mode):  # opening a device may already do something
        raise UnfitFile("no regular file")
    descriptor = os.open(path, _FLAGS | (0 if follow else _NO_LINK))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnfitFile("no regular file")
    return descriptor


@contextmanager
def opened(path: Path | str, *, follow: bool = True) -> Iterator[int]:
    """`open_descriptor`, closed at the end."""
    descriptor = open_descriptor(path, follow=follow)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_bytes(path: Path | str, longest: int, *, follow: bool = True) -> bytes:
    """The content of a regular file of at most `longest` bytes; raises as `open_descriptor`."""
    with opened(path, follow=follow) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > longest:
            raise UnfitFile(f"{size} bytes, where {longest} are the most")
        parts, count = [], 0
        while block := os.read(descriptor, min(_BLOCK, longest + 1 - count)):
            parts.append(block)
            if (count := count + len(block)) > longest:  # it grew, or the system does not tell its size
                raise UnfitFile(f"more than {longest} bytes")
        return b"".join(parts)


def read_owned(path: Path | str, longest: int) -> bytearray:
    """The same in one piece of memory, which its tensors may lie in; a file that grows meanwhile is read as it was."""
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > longest:
            raise UnfitFile(f"{size} bytes, where {longest} are the most")
        return read_exactly(descriptor, 0, size)


def read_beginning(path: Path | str, most: int) -> bytes:
    """The first bytes of a regular file; raises as `open_descriptor`."""
    with opened(path) as descriptor:
        return os.read(descriptor, most)


def read_text(path: Path | str, longest: int, *, follow: bool = True) -> str:
    """The UTF-8 text of a regular file; raises as `read_bytes`, and `UnicodeDecodeError`, which is a `ValueError`."""
    return read_bytes(path, longest, follow=follow).decode("utf8")


def read_exactly(descriptor: int, begin: int, length: int) -> bytearray:
    """Read this many bytes of a file into glider's memory; raises `UnfitFile` if the file ends before.

    With a memory map, a file that is cut short would kill the process.
    """
    content = bytearray(length)
    view, done = memoryview(content), 0
    while done < length:
        count = os.preadv(descriptor, [view[done : done + (1 << 30)]], begin + done)
        if count == 0:
            raise UnfitFile(f"a file that ends at byte {begin + done}, where {begin + length} were due")
        done += count
    return content


def from_home(path: Path | str) -> Path:
    """A path with `~` or `~NAME` at its beginning as a home directory; as it is, where nobody here has that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def refuse_holes(descriptor: int) -> None:
    """Raise `UnfitFile` for a file that is nearly all holes: of terabytes that take no place, whoever reads them to the
    end takes hours, and whoever keeps them all memory."""
    size = os.fstat(descriptor).st_size
    if size <= _MOST_HOLES or not hasattr(os, "SEEK_DATA"):
        return
    data = place = 0
    try:
        while place < size:
            begin = os.lseek(descriptor, place, os.SEEK_DATA)
            place = os.lseek(descriptor, begin, os.SEEK_HOLE)
            data += place - begin
    except OSError as fault:
        if fault.errno != errno.ENXIO:  # a file system that does not tell
            return
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    if size - data > max(_MOST_HOLES, _HOLES_OF_DATA * data):
        raise UnfitFile(f"{size} bytes of which {data} are there, and the rest holes")


def sha256(path: Path) -> str:
    """Hex digest of a regular file's content; raises as `open_descriptor`, and for holes."""
    digest = hashlib.sha256()
    with opened(path) as descriptor:
        refuse_holes(descriptor)
        while block := os.read(descriptor, _BLOCK):
            digest.update(block)
    return digest.hexdigest()
