"""Token choice: each token takes its best experts, by softmax or by a balanced plan (arXiv 2401.15969)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from glider.errors import RouterError
from glider.routing.base import Support, router
from glider.routing.nearest import require_count
from glider.routing.sequence_choice import WholePrompts, row_largest
from glider.routing.transport import sinkhorn
from glider.shapes import Float, Tensor


@router("token-choice", paper="arXiv:2401.15969")
@dataclass(frozen=True)
class TokenChoice(WholePrompts):
    """Each token takes the K experts of largest weight, by `normalise` over any local score.

    - "softmax": over the experts, token by token. With `renormalise` it is the rule of `phatgoose`, `arrow`, `spectr`.
    - "sinkhorn": the entropy-regularised plan in which each token of the prompt has 1 and each expert N / E
      (`iterations` of Sinkhorn), so that a prompt uses all experts evenly. A prompt's token then depends on later ones;
      tokens that are generated take the softmax.

    Weights are those of softmax or plan as they are; whether the paper scales by the plan or by the softmax there could
    not be read. Decided in PyTorch; the experts run in any kernel.
    """

    normalise: Literal["softmax", "sinkhorn"] = "softmax"
    k: int = 2
    renormalise: bool = False
    iterations: int = 30
    local: str = "gates"
    local_settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self.k)
        if self.normalise not in ("softmax", "sinkhorn"):
            raise RouterError("normalise of softmax, sinkhorn", repr(self.normalise), "Check the spelling.")
        if self.iterations < 1:
            raise RouterError("iterations of at least 1", str(self.iterations), "Give 1 or more.")

    @property
    def support(self) -> Support:
        return super().support if self.normalise == "sinkhorn" else Support()

    def alone(self, scores: Float[Tensor, "N E"]) -> Float[Tensor, "N E"]:
        return self._largest(scores.softmax(dim=-1))

    def together(self, scores: Float[Tensor, "N E"]) -> Float[Tensor, "N E"]:
        return self._largest(sinkhorn(scores, self.iterations))

    def _largest(self, weights: Float[Tensor, "N E"]) -> Float[Tensor, "N E"]:
        largest = row_largest(weights, self.k)
        return largest / (largest.sum(dim=-1, keepdim=True) + 1e-6) if self.renormalise else largest
