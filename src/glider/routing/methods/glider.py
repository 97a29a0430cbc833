"""GLIDER: a global term from the query's instruction, a local one from every token (arXiv 2410.07172)."""

from dataclasses import dataclass

from glider.routing.base import router
from glider.routing.compose import Composed
from glider.routing.parts import GlobalPart, TrainedGates
from glider.routing.scores import LocalScale
from glider.routing.select import Select, TopK


@router("glider", paper="arXiv:2410.07172")
@dataclass(frozen=True)
class Glider(Composed):
    """score = alpha * global_e + std(x) . std(v_e) / sqrt(D), alpha = gamma * [max global > p] + beta.

    `global_` names the signal: `instruction` is the paper's cosine(g_e, q) (section 4.2). What is left at None is the
    pool's calibration, or without one the paper's: `instruction`, 100, 3, and the threshold known for the embedder.
    Global scores and alpha belong to one query each.
    """

    select: Select = TopK(2)
    global_: str | None = None
    p: float | None = None
    gamma: float | None = None
    beta: float | None = None
    local_scale: LocalScale = "width"

    @property
    def local(self) -> TrainedGates:
        return TrainedGates("glider", self.local_scale)

    @property
    def global_term(self) -> GlobalPart:
        return GlobalPart("glider", self.global_, self.p, self.gamma, self.beta)
