"""Arrow: the direction each adapter amplifies most is its prototype (arXiv 2405.11157)."""

from dataclasses import dataclass

from glider.routing.base import router
from glider.routing.compose import Composed
from glider.routing.local_scores.arrow import ArrowVectors
from glider.routing.select import Select, TopK


@router("arrow", paper="arXiv:2405.11157")
@dataclass(frozen=True)
class Arrow(Composed):
    """score = |v_e . x| / temperature, v_e the first right singular vector of B_e A_e, then top-2 (Arrow routing).

    The paper and PEFT take the softmax over the k kept scores only. Ours is over all, divided by the sum of the kept:
    the same weights, as exp(s_i) / sum over kept exp(s_j) is what both come to.
    """

    select: Select = TopK(2)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        ArrowVectors(self.temperature)  # refuses a bad temperature now, not at the first token

    def local_score(self) -> ArrowVectors:
        return ArrowVectors(self.temperature)
