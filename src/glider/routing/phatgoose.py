"""PHATGOOSE: every token by itself, by trained sigmoid gates (arXiv 2402.05859)."""

from dataclasses import dataclass

from glider.experts.pool import Pool
from glider.routing.base import Decision, Prepared, Site, router
from glider.routing.scores import LocalScale, local_scores, standardised_gates
from glider.routing.select import Select, TopK
from glider.shapes import Float, Tensor


@router("phatgoose", paper="arXiv:2402.05859")
@dataclass(frozen=True)
class Phatgoose:
    """score = std(x) . std(v_e) / sqrt(D), then top-2 (section 3.2)."""

    select: Select = TopK(2)
    local_scale: LocalScale = "width"

    def prepare(self, pool: Pool) -> Prepared:
        pool.require("phatgoose", gates=True)
        return Prepared(pool.experts, standardised_gates(pool))

    def condition(self, prepared: Prepared, queries: Float[Tensor, "B G"]) -> None:
        return None

    def route(self, site: Site, x: Float[Tensor, "T D"], condition: Float[Tensor, "T E"] | None) -> Decision:
        return self.select(local_scores(x, site, self.local_scale))
