"""Dtypes by their names in safetensors files, known without torch."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of a value."""
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
WHOLE = frozenset({"I64", "I32", "I16", "I8", "U8"})


@cache
def torch_dtype(name: str) -> torch.dtype:
    """The same in PyTorch."""
    import torch

    whole = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
    floating = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return {**floating, **whole, "BOOL": torch.bool}[name]


def name_of(dtype: torch.dtype) -> str:
    """The name of a dtype of PyTorch that files can have."""
    return next(name for name in SIZES if torch_dtype(name) == dtype)


def wider(one: str, other: str) -> str:
    """The dtype that holds the values of both, as `torch.promote_types`."""
    if one == other:
        return one
    import torch

    return name_of(torch.promote_types(torch_dtype(one), torch_dtype(other)))
