"""The score of PHATGOOSE and GLIDER: gates trained with the adapters (arXiv 2402.05859)."""

from dataclasses import dataclass

from glider.experts.pool import Pool
from glider.routing.base import Site
from glider.routing.linear import LinearScores
from glider.routing.local_scores.base import local_score
from glider.routing.scores import LocalScale, local_divisor, local_scores, standardised_gates
from glider.shapes import Float, Tensor


@local_score("gates", paper="arXiv:2402.05859")
@dataclass(frozen=True)
class TrainedGates:
    """std(x) . std(v_e) / sqrt(D), v_e the gate trained with the adapter (PHATGOOSE, section 3)."""

    scale: LocalScale = "width"

    def prepare(self, pool: Pool) -> dict[str, Site]:
        pool.require(gates=True)
        return standardised_gates(pool)

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        return local_scores(x, site, self.scale)

    def linear(self, site: Site) -> LinearScores:
        gates = site["gates"]
        return LinearScores(gates, local_divisor(gates, self.scale), standardise=True)
