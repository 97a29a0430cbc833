"""Axis letters of every tensor in glider, in one place.

| letter | axis |
|---|---|
| T | tokens, flattened over the batch |
| B | queries (rows of a batch) |
| E | experts of a pool |
| D, O | input and output width of a site |
| R | LoRA rank |
| G | width of an instruction embedding |
| K | experts kept per token |

Signatures use jaxtyping (`Float[Tensor, "T D"]`); the tests check them with beartype.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Bool", "Float", "Int", "Tensor"]
