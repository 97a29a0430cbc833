"""The header of a GGUF file, bounded before transformers reads it.

It tells of names and arrays by their counts, and of a model by a few numbers, of which transformers makes a whole model
before it looks for a tensor: without them one of seven billion parameters.
"""

import math
import os
import struct
from io import BufferedReader
from pathlib import Path
from typing import Any

from glider.files.opening import UnfitFile, opened

MOST_ENTRIES, MOST_TENSORS, MOST_ITEMS = 10_000, 100_000, 5_000_000
_LONGEST_NAME, _LONGEST_TEXT = 1 << 16, 1 << 24  # bytes
_DIMENSIONS = 4
_SPARE = 16  # times the parameters that a header promises, against those of its tensors
_SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


def require_gguf(path: Path) -> None:
    """Raise `UnfitFile` for what is no GGUF file, or one whose header promises more than lies in it; raises `OSError`
    and `UnfitFile` as `opened`."""
    with opened(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        size = os.fstat(descriptor).st_size
        magic, version, tensors, entries = _take(file, "4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise UnfitFile("no GGUF of version 2 or 3")
        _require_most("entries", entries, MOST_ENTRIES)
        _require_most("tensors", tensors, MOST_TENSORS)
        settings = dict(_entry(file, size) for _ in range(entries))
        parameters = sum(_tensor(file, size) for _ in range(tensors))
    _require_most("weights in its tensors", parameters, 8 * size)
    _require_model(settings, parameters)


def _require_model(settings: dict[str, Any], parameters: int) -> None:
    """Raise `UnfitFile` where the numbers of a model are absent, or far beyond those of its tensors."""
    family = settings.get("general.architecture")

    def number(name: str) -> int:
        value = settings.get(name, 0)
        return value if isinstance(value, int) else 0

    parts = ("block_count", "embedding_length", "feed_forward_length", "expert_count", "attention.head_count")
    layers, width, inner, experts, heads = (number(f"{family}.{name}") for name in parts)
    if layers < 1 or width < 1:
        raise UnfitFile(f"no {family}.block_count and {family}.embedding_length"[:200])
    words = max(number("tokenizer.ggml.tokens"), number(f"{family}.vocab_size"))
    across = max(width, inner, experts, heads * number(f"{family}.attention.key_length"))
    _require_most("weights by its numbers", width * max(layers * across, words), _SPARE * parameters)


def _entry(file: BufferedReader, size: int) -> tuple[str, Any]:
    """A name and its value: a number, a short text, of an array of numbers the largest, of one of texts their count."""
    name, (kind,) = _text(file, _LONGEST_NAME), _take(file, "I")
    if kind != _ARRAY:
        return name, _value(file, kind)
    item, count = _take(file, "IQ")
    if item == _ARRAY:
        raise UnfitFile(f"arrays of arrays in {name[:60]!r}")
    _require_most(f"items of {name[:60]!r}", count, min(MOST_ITEMS, size))
    if item == _TEXT:
        for _ in range(count):
            file.seek(_length(file, _LONGEST_TEXT), os.SEEK_CUR)
        return name, count
    if item not in _SIZES:
        raise UnfitFile(f"a value of type {item}")
    return name, max(_take(file, f"{count}{_SIZES[item]}"), default=0)


def _value(file: BufferedReader, kind: int) -> Any:
    if kind == _TEXT:
        return _text(file, _LONGEST_TEXT)
    if kind not in _SIZES:
        raise UnfitFile(f"a value of type {kind}")
    return _take(file, _SIZES[kind])[0]


def _tensor(file: BufferedReader, size: int) -> int:
    """How many weights a tensor has, which begins within the file."""
    name, (count,) = _text(file, _LONGEST_NAME), _take(file, "I")
    _require_most(f"dimensions of {name[:60]!r}", count, _DIMENSIONS)
    *shape, _, offset = _take(file, f"{count}QIQ")
    _require_most(f"offset of {name[:60]!r}", offset, size)
    return math.prod(shape)


def _text(file: BufferedReader, longest: int) -> str:
    (content,) = _take(file, f"{_length(file, longest)}s")
    return content.decode("utf8", "replace")


def _length(file: BufferedReader, longest: int) -> int:
    (length,) = _take(file, "Q")
    _require_most("bytes of a text", length, longest)
    return length


def _take(file: BufferedReader, form: str) -> tuple[Any, ...]:
    """Values of the file's next bytes."""
    content = file.read(length := struct.calcsize(f"<{form}"))
    if len(content) < length:
        raise UnfitFile("a file that ends within its header")
    return struct.unpack(f"<{form}", content)


def _require_most(what: str, count: int, most: int) -> None:
    if count > most:
        raise UnfitFile(f"{what}: {count}, where {most} are the most")
