"""From scores to the experts kept, and their weights."""

from dataclasses import dataclass
from typing import Protocol, SupportsFloat, SupportsIndex, runtime_checkable

import torch

from glider.errors import RouterError
from glider.routing.base import Decision
from glider.shapes import Float, Tensor


@runtime_checkable
class Select(Protocol):
    """A rule that keeps experts and weighs them."""

    def __call__(self, scores: Float[Tensor, "T E"]) -> Decision: ...


def chances(scores: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
    """Softmax over the experts in float32; 0 for all of them where every score is minus infinity."""
    nobody = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return scores.float().softmax(dim=-1).masked_fill(nobody, 0.0)


@dataclass(frozen=True)
class TopK:
    """Keep the k largest probabilities.

    Arguments:
        k: How many; all experts where there are fewer.
        renormalise: Divide them by their sum + 1e-6, as PHATGOOSE (arXiv 2402.05859) does; False leaves them.

    Raises: `RouterError` for k below 1.
    """

    k: int = 2
    renormalise: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, SupportsIndex) or self.k < 1:
            raise RouterError("k of at least 1", repr(self.k)[:60], "Give --top-k 1 or more.")

    def __call__(self, scores: Float[Tensor, "T E"]) -> Decision:
        probabilities = chances(scores)
        weights, experts = probabilities.topk(min(self.k, scores.shape[-1]), dim=-1)  # (T, K)
        if self.renormalise:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
        return Decision(experts, weights, scores)


@dataclass(frozen=True)
class TopP:
    """Keep the smallest set whose probability reaches p (at least one expert), then softmax over the kept.

    Arguments:
        p: The probability to reach, above 0 and at most 1.

    Raises: `RouterError` for another p.

    K is the number of experts; those not kept have weight zero.
    """

    p: float

    def __post_init__(self) -> None:
        if not isinstance(self.p, SupportsFloat) or not 0 < self.p <= 1:
            raise RouterError("p in (0, 1]", repr(self.p)[:60], "Give --top-p such as 0.5.")

    def __call__(self, scores: Float[Tensor, "T E"]) -> Decision:
        ordered, experts = scores.float().sort(dim=-1, descending=True, stable=True)
        probabilities = chances(ordered)
        reached_before = probabilities.cumsum(dim=-1) - probabilities  # by the experts ahead in the order
        selected = reached_before < self.p
        selected[..., 0] = True
        return Decision(experts, chances(ordered.masked_fill(~selected, -torch.inf)), scores)
