"""GLIDER: a global term from the query's instruction, a local one from every token (arXiv 2410.07172)."""

from dataclasses import dataclass

from glider.routing.base import router
from glider.routing.compose import Composed
from glider.routing.parts import InstructionTerm, TrainedGates
from glider.routing.scores import LocalScale
from glider.routing.select import Select, TopK


@router("glider", paper="arXiv:2410.07172")
@dataclass(frozen=True)
class Glider(Composed):
    """score = alpha * cosine(g_e, q) + std(x) . std(v_e) / sqrt(D), alpha = gamma * [max cosine > p] + beta.

    `p`, `gamma` and `beta` left at None are the pool's calibration, or without one the paper's 100 and 3 and the
    threshold known for the pool's embedder. Global scores and alpha belong to one query each (section 4.2).
    """

    select: Select = TopK(2)
    p: float | None = None
    gamma: float | None = None
    beta: float | None = None
    local_scale: LocalScale = "width"

    @property
    def local(self) -> TrainedGates:
        return TrainedGates("glider", self.local_scale)

    @property
    def global_(self) -> InstructionTerm:
        return InstructionTerm("glider", self.p, self.gamma, self.beta)
