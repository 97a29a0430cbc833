"""Files of an expert and a pool, written by hand, and how they may be read."""

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest

from glider.errors import GliderError

Q = "model.layers.0.self_attn.q_proj"
TENSOR_FILES = ("adapter_model.safetensors", "glider.safetensors")
JSON_FILES = ("adapter_config.json", "card.json")


def survives(read: Callable[[], Any]) -> bool:
    """Whether the reader accepted; any other error than a `GliderError` is a crash and comes out."""
    try:
        read()
    except GliderError as fault:
        assert len(str(fault)) < 10_000
        return False
    return True


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(read: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(GliderError) as raised:
        read()
    for part in parts:
        assert part in str(raised.value)
