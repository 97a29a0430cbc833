"""The headers of safetensors files, read and distrusted before any tensor is touched.

Reading the header alone says what a file holds. Experts of one shape have byte-identical headers, so that a pool of a
thousand parses one of them.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from glider.errors import ExpertError

LARGEST_HEADER = 16 << 20  # bytes; a 36-expert T5-XL adapter needs a hundredth of it
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}
_MOST_AXES = 8
_LARGEST_CACHED = 256 << 10


@dataclass(frozen=True, eq=False)
class Header:
    """The shape, dtype and place of every tensor of a file. Files with the same header give the same object."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    places: dict[str, tuple[int, int]]  # first byte and length, from the file's beginning
    data_bytes: int


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises `ExpertError` naming the file if it is missing, cut short, longer than it says, or inconsistent in itself.
    """
    try:
        if path.exists() and not path.is_file():
            raise damaged(path, "no regular file")
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise damaged(path, f"a header of {length} bytes in a file of {size}")
            header = file.read(length)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
        raise ExpertError(f"the file {path}", "no such file", "Get the expert anew; it is incomplete.") from None
    except OSError as fault:
        raise damaged(path, str(fault)) from fault
    try:
        parsed = _parse_known(header) if len(header) <= _LARGEST_CACHED else _parse(header)
    except (ValueError, RecursionError) as fault:
        raise damaged(path, str(fault)) from fault
    if 8 + length + parsed.data_bytes != size:
        raise damaged(path, f"{size} bytes where its header declares {8 + length + parsed.data_bytes}")
    return parsed


def damaged(path: Path, got: str) -> ExpertError:
    """The error for a file that is not what it says it is."""
    return ExpertError(f"a safetensors file in {path}", f"a damaged one ({got})", "Get the expert anew.")


@lru_cache(maxsize=1024)
def _parse_known(header: bytes) -> Header:
    return _parse(header)


def _parse(header: bytes) -> Header:
    """The header, or a `ValueError` that says what is wrong with it."""
    entries = json.loads(header, object_pairs_hook=_unique)
    if not isinstance(entries, dict):
        raise ValueError("a header that is no object")
    entries = {name: _entry(name, value) for name, value in entries.items() if name != "__metadata__"}
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
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name that stands twice in the header")
    return dict(pairs)


def _entry(name: str, value: Any) -> tuple[tuple[int, ...], torch.dtype, int, int]:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"an entry {name} without dtype, shape and data_offsets")
    shape, offsets, dtype = value["shape"], value["data_offsets"], _DTYPES.get(str(value["dtype"]))
    if dtype is None:
        raise ValueError(f"dtype {value['dtype']!r} in {name}")
    if not _naturals(shape) or len(shape) > _MOST_AXES or not _naturals(offsets) or len(offsets) != 2:
        raise ValueError(f"shape {shape} and offsets {offsets} in {name}")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{offsets[1] - offsets[0]} bytes for shape {shape} of {value['dtype']} in {name}")
    return tuple(shape), dtype, offsets[0], offsets[1]


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)
