"""Widths of a linear module, however it stores its weight."""

import operator
from typing import Any


def linear_widths(module: Any) -> tuple[int, int] | None:
    """(in, out) of a module that maps (..., in) to (..., out); None for one that is not linear.

    GPT-2's `Conv1D` is a linear layer whose weight lies transposed, (in, out).
    """
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        width, out = module.weight.shape
        return int(width), int(out)
    try:
        return operator.index(module.in_features), operator.index(module.out_features)  # Inkling's are tensors
    except (AttributeError, TypeError):
        return None


def is_transposed(module: Any) -> bool:
    """Whether the weight lies as (in, out)."""
    return type(module).__name__ == "Conv1D"


def linear_layers(model: Any) -> list[str]:
    """The names of a model's layers that a LoRA pair can be put on."""
    return [name for name, module in model.named_modules() if linear_widths(module) is not None]
