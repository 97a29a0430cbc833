"""The headers of safetensors files, read and distrusted before any tensor is touched.

Reading the header alone says what a file holds. Experts of one shape have byte-identical headers, so that a pool of a
thousand parses one of them.
"""

import errno
import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from glider.errors import ExpertError
from glider.files.dtypes import SIZES
from glider.files.json_text import parse_json
from glider.files.opening import UnfitFile, opened, read_exactly

LARGEST_HEADER = 16 << 20  # bytes; a 36-expert T5-XL adapter needs a hundredth of it
MOST_TENSORS = 100_000  # an adapter on every expert of 48 layers of 128 has 37,000
LONGEST_NAME = 512  # characters
_MOST_AXES = 8
_MOST_METADATA = 64  # values beside the tensors
_LARGEST_CACHED = 256 << 10


@dataclass(frozen=True, eq=False)
class Header:
    """The shape, dtype and place of every tensor of a file. Files with the same header give the same object."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]  # by their names in the file, of `files.dtypes`
    places: dict[str, tuple[int, int]]  # first byte and length, from the file's beginning
    data_bytes: int
    length: int  # of the header's text
    sha256: bytes  # of the header's text
    metadata: dict[str, str] = field(default_factory=dict)  # texts beside the tensors

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return 8 + self.length + self.data_bytes


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises `ExpertError` naming the file if it is missing, cut short, longer than it says, or inconsistent in itself.
    """
    with reading(path), opened(path) as descriptor:
        return header_of(descriptor, path)


def header_of(descriptor: int, path: Path) -> Header:
    """The header of an opened file; raises as `read_header`."""
    try:
        return header_at(descriptor)
    except (ValueError, RecursionError) as fault:
        raise damaged(path, str(fault)) from fault


def header_at(descriptor: int) -> Header:
    """The header of an opened file; `ValueError` and `RecursionError` say what is wrong with it."""
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(read_exactly(descriptor, 0, min(8, size)), "little")
    if not 2 <= length <= min(LARGEST_HEADER, size - 8):
        raise UnfitFile(f"a header of {length} bytes in a file of {size}")
    header = bytes(read_exactly(descriptor, 8, length))
    parsed = _parse_known(header) if len(header) <= _LARGEST_CACHED else _parse_large(header)
    if parsed.size != size:
        raise UnfitFile(f"{size} bytes where its header declares {parsed.size}")
    return parsed


def header_in(content: bytes | bytearray, most: int = MOST_TENSORS) -> Header:
    """The header of a whole file's content, with at most this many tensors; `ValueError` says what is wrong with it."""
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= min(LARGEST_HEADER, len(content) - 8):
        raise UnfitFile(f"a header of {length} bytes in a file of {len(content)}")
    parsed = _parse(bytes(content[8 : 8 + length]), most)
    if parsed.size != len(content):
        raise UnfitFile(f"{len(content)} bytes where its header declares {parsed.size}")
    return parsed


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Let what goes wrong in reading a file of an expert be an `ExpertError` that names it."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
        raise ExpertError(f"the file {path}", "no such file", "Get the expert anew; it is incomplete.") from None
    except (OSError, UnfitFile) as fault:
        if isinstance(fault, OSError) and fault.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # the machine's fault, not the file's
        raise damaged(path, str(fault)) from fault


def damaged(path: Path, got: str) -> ExpertError:
    """The error for a file that is not what it says it is."""
    return ExpertError(f"a safetensors file in {path}", f"a damaged one ({got})", "Get the expert anew.")


@lru_cache(maxsize=1024)
def _parse_known(header: bytes) -> Header:
    return _parse(header)


@lru_cache(maxsize=1)
def _parse_large(header: bytes) -> Header:
    """Of a file that is read several times in a row."""
    return _parse(header)


def _parse(header: bytes, most: int = MOST_TENSORS) -> Header:
    """The header, or a `ValueError` that says what is wrong with it."""
    entries = parse_json(header, 8 * (most + _MOST_METADATA))
    if not isinstance(entries, dict):
        raise ValueError("a header that is no object")
    if len(entries) > most + 1:
        raise ValueError(f"{len(entries)} tensors, where {most} are the most")
    metadata = entries.pop("__metadata__", {})
    entries = {name: _entry(name, value) for name, value in entries.items()}
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            raise ValueError(f"tensor {name} at byte {begin}, where byte {position} was due")
        position = end
    return Header(
        {name: shape for name, (shape, _, _, _) in entries.items()},
        {name: dtype for name, (_, dtype, _, _) in entries.items()},
        {name: (8 + len(header) + begin, end - begin) for name, (_, _, begin, end) in entries.items()},
        position,
        len(header),
        hashlib.sha256(header).digest(),
        {name: text for name, text in metadata.items() if isinstance(text, str)} if isinstance(metadata, dict) else {},
    )


def _entry(name: str, value: Any) -> tuple[tuple[int, ...], str, int, int]:
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a name of {len(name)} characters, {name[:40]!r}")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"an entry {name} without dtype, shape and data_offsets")
    shape, offsets = value["shape"], value["data_offsets"]
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise ValueError(f"dtype {str(dtype)[:40]!r} in {name}")
    if not _naturals(shape) or len(shape) > _MOST_AXES or not _naturals(offsets) or len(offsets) != 2:
        raise ValueError(f"shape {str(shape)[:80]} and offsets {str(offsets)[:80]} in {name}")
    if offsets[1] - offsets[0] != math.prod(shape) * SIZES[dtype]:
        raise ValueError(f"{offsets[1] - offsets[0]} bytes for shape {shape} of {dtype} in {name}")
    return tuple(shape), dtype, offsets[0], offsets[1]


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)
