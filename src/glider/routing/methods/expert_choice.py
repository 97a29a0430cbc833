"""Expert choice: each expert takes its best tokens of a prompt (arXiv 2202.09368, 2401.15969)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

import torch

from glider.errors import RouterError
from glider.routing.base import router
from glider.routing.sequence_choice import WholePrompts, row_largest
from glider.routing.transport import sinkhorn, sparse_plan
from glider.shapes import Float, Tensor

_NORMALISE = ("softmax", "sinkhorn", "sparse")


@router("expert-choice", paper="arXiv:2401.15969")
@dataclass(frozen=True)
class ExpertChoice(WholePrompts):
    """Each expert takes the ceil(capacity * N / E) tokens of largest weight of a prompt of N, by `normalise`.

    - "softmax": over the experts (Zhou et al., arXiv 2202.09368).
    - "sinkhorn": the entropy-regularised plan of rows 1 and columns N / E (`iterations`).
    - "sparse": the quadratically regularised plan (`gamma`) whose columns have no more tokens than that, so that
      choosing is part of the plan (Liu et al., arXiv 2209.15466); needs a capacity of 1 or more. What `iterations`
      leave above 1 of a token is scaled down to it.

    `capacity` is the mean number of experts of a token; a token may have more, or none. Weights are as they are (what
    the paper multiplies outputs by under a plan is inferred). The tokens are those of one prompt: a mixed batch is its
    prompts one by one, padding takes no place. A prompt's token depends on later ones, so that no prompt is computed in
    pieces or packed with others; each generated token takes its ceil(capacity) best experts by softmax, the capacity
    that the prompt had. Decided in PyTorch; the experts run in any kernel.
    """

    normalise: Literal["softmax", "sinkhorn", "sparse"] = "softmax"
    capacity: float = 2.0
    iterations: int = 30
    gamma: float = 1.0
    local: str = "gates"
    local_settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalise not in _NORMALISE:
            raise RouterError(f"normalise of {', '.join(_NORMALISE)}", repr(self.normalise), "Check the spelling.")
        least = 1.0 if self.normalise == "sparse" else 0.0
        if not (least <= self.capacity < float("inf") and self.capacity > 0):
            raise RouterError(f"a capacity above 0 ({least:g} or more)", str(self.capacity), "Give one such as 2.")
        if self.iterations < 1 or not 0 < self.gamma < float("inf"):
            got = f"iterations {self.iterations}, gamma {self.gamma:g}"
            raise RouterError("iterations of at least 1 and a gamma above 0", got, "Mend the settings.")

    def alone(self, scores: Float[Tensor, "N E"]) -> Float[Tensor, "N E"]:
        return row_largest(scores.softmax(dim=-1), ceil(self.capacity))

    def together(self, scores: Float[Tensor, "N E"]) -> Float[Tensor, "N E"]:
        count, experts = scores.shape
        most = min(count, ceil(self.capacity * count / experts))
        if self.normalise == "sparse":
            plan = sparse_plan(scores, most, self.gamma, self.iterations)
            return plan / plan.sum(dim=1, keepdim=True).clamp(min=1.0)
        weights = scores.softmax(dim=-1) if self.normalise == "softmax" else sinkhorn(scores, self.iterations)
        values, tokens = weights.topk(most, dim=0)
        return torch.zeros_like(weights).scatter(0, tokens, values)
