"""The parts of GLIDER and PHATGOOSE, for any method to use: trained gates, and the global term."""

from dataclasses import dataclass

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import GlobalTerm, Site
from glider.routing.linear import LinearScores
from glider.routing.scores import LocalScale, local_divisor, local_scores, standardised_gates
from glider.routing.signals.base import signals
from glider.shapes import Float, Tensor

GAMMA, BETA = 100.0, 3.0


@dataclass(frozen=True)
class TrainedGates:
    """std(x) . std(v_e) / sqrt(D), v_e the gate trained with the adapter (PHATGOOSE, section 3)."""

    router: str
    scale: LocalScale = "width"

    def prepare(self, pool: Pool) -> dict[str, Site]:
        pool.require(self.router, gates=True)
        return standardised_gates(pool)

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        return local_scores(x, site, self.scale)

    def linear(self, site: Site) -> LinearScores:
        assert site.vectors is not None
        return LinearScores(site.vectors, local_divisor(site.vectors, self.scale), standardise=True)


@dataclass(frozen=True)
class GlobalPart:
    """alpha * global, alpha = gamma * [max global > p] + beta (GLIDER, section 4.2), the scores by a global signal.

    Without a signal it is the one that the pool is calibrated for, or else the paper's, `instruction`. Constants left
    at None are the pool's calibration for the signal, or without one the paper's 100 and 3 and the signal's own p.
    """

    router: str
    signal: str | None = None
    p: float | None = None
    gamma: float | None = None
    beta: float | None = None

    def prepare(self, pool: Pool) -> GlobalTerm:
        name = self.signal or pool.index.signal or "instruction"
        signal, stored = signals.create(name), pool.index.calibrations.get(name)
        scores = signal.prepare(pool, self.router)
        p = self.p if self.p is not None else stored.p if stored else signal.threshold(pool)
        if p is None:
            embedder = pool.index.embedder
            raise RouterError(
                "a threshold p for the pool's embedder",
                f"none known for {embedder.embedder if embedder else 'a pool without embedder'}",
                "Calibrate the pool (`glider pool calibrate`) or give p.",
            )
        gamma = self.gamma if self.gamma is not None else stored.gamma if stored else GAMMA
        beta = self.beta if self.beta is not None else stored.beta if stored else BETA
        return GlobalTerm(scores, p, gamma, beta, name)
