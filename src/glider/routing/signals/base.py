"""A global signal: it computes the scores of whole queries from what a pool's experts store."""

from typing import Protocol, runtime_checkable

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.experts.profile import Profile
from glider.registry import Registry
from glider.routing.base import GlobalScores
from glider.shapes import Bool, Float, Tensor

signals: "Registry[Signal]" = Registry("global signal", "glider.signals", ("glider.routing.signals",), RouterError)
signal = signals.register


@runtime_checkable
class Signal(Protocol):
    """Frozen settings of a signal."""

    def prepare(self, pool: Pool) -> GlobalScores:
        """Compute whatever depends on the pool alone. Raises `RouterError` naming the experts that lack what is
        needed."""
        ...

    def threshold(self, pool: Pool) -> float | None:
        """p for a pool that has not been calibrated; None where nothing is known."""
        ...


def require_experts(pool: Pool) -> None:
    """Raise `RouterError` for an empty pool, over which no signal has a score."""
    if not len(pool):
        raise RouterError("a pool with experts", "an empty one", "Add experts: `glider pool add`.")


def profiles(pool: Pool, *, inputs: bool = False) -> list[Profile]:
    """The profile of every expert; raises `RouterError` naming those without one."""
    require_experts(pool)
    known = [expert.profile for expert in pool]
    lacking = [
        expert.name
        for expert, profile in zip(pool, known, strict=True)
        if profile is None or (inputs and profile.inputs is None)
    ]
    if lacking:
        raise RouterError(
            f"a profile{' with embeddings' if inputs else ''} of every expert",
            f"none in {', '.join(lacking)}",
            "Make them of training rows with `glider expert profile`, or choose the global signal `instruction`.",
        )
    return [profile for profile in known if profile is not None]


def lead(scores: Float[Tensor, "B E"], absent: Bool[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    """How far each expert's score is above the mean of the other present experts; minus infinity where absent.

    What all experts share for a query (its length, common words) cancels. 0 where there is no other expert.
    """
    known = scores.masked_fill(absent, 0.0)
    others = (~absent).sum(dim=-1, keepdim=True) - 1
    mean = (known.sum(dim=-1, keepdim=True) - known) / others.clamp(min=1)
    return torch.where(others > 0, known - mean, 0.0).masked_fill(absent, -torch.inf)


def absent(scores: Float[Tensor, "B E"], without: int | None) -> Bool[Tensor, "B E"]:
    """True in the column of the expert left out."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    if without is not None:
        mask[:, without] = True
    return mask
