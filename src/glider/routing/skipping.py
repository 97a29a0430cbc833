"""What routers by trained gates that skip have in common: their settings, and a step that can be trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from glider.errors import RouterError
from glider.routing.select import Select, TopK
from glider.routing.sequence_choice import ByLocal
from glider.shapes import Float, Tensor


@dataclass(frozen=True)
class Skipping(ByLocal):
    """A router over a local score with gates beside it, which are open where they reach `tau`."""

    select: Select = TopK(2)
    tau: float = 0.5
    local: str = "gates"
    local_settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tau <= 1:
            raise RouterError("tau in [0, 1]", str(self.tau), "Give one such as 0.5.")

    def is_open(self, openness: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """1 for an open gate and 0 for a shut one, given the sigmoids; the gradient is the sigmoid's."""
        step = (openness >= self.tau).float()
        if torch.is_grad_enabled() and openness.requires_grad:
            return step + openness - openness.detach()  # the step forward, the sigmoid backward
        return step
