"""PHATGOOSE: every token by itself, by trained sigmoid gates (arXiv 2402.05859)."""

from dataclasses import dataclass

from glider.routing.base import router
from glider.routing.compose import Composed
from glider.routing.local_scores.gates import TrainedGates
from glider.routing.scores import LocalScale
from glider.routing.select import Select, TopK


@router("phatgoose", paper="arXiv:2402.05859")
@dataclass(frozen=True)
class Phatgoose(Composed):
    """score = std(x) . std(v_e) / sqrt(D), then top-2 (section 3.2).

    Arguments:
        select: Which experts are kept for a token.
        local_scale: "width" divides by sqrt(D); "experts" is GLIDER's cosine over sqrt(E).

    Raises: `RouterError` from `prepare` where an expert has no gate.
    """

    select: Select = TopK(2)
    local_scale: LocalScale = "width"

    def local_score(self) -> TrainedGates:
        return TrainedGates(self.local_scale)
