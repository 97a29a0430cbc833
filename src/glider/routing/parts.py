"""The parts of GLIDER and PHATGOOSE, for any method to use: trained gates, and the instruction term."""

from dataclasses import dataclass

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import GlobalTerm, Site
from glider.routing.linear import LinearScores
from glider.routing.scores import LocalScale, local_divisor, local_scores, standardised_gates
from glider.shapes import Float, Tensor

# p belongs to the embedder: the paper's for nomic (GLIDER, section 4.2); for MiniLM the value that separates held-in
# from held-out tasks under the paper's own GPT-4 descriptions
THRESHOLDS = {"nomic-ai/nomic-embed-text-v1.5": 0.8, "all-MiniLM-L6-v2": 0.63}
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
class InstructionTerm:
    """alpha * cosine(g_e, q), alpha = gamma * [max cosine > p] + beta (GLIDER, section 4.2).

    Constants left at None are the pool's calibration, or without one the paper's 100 and 3 and the threshold known for
    the pool's embedder.
    """

    router: str
    p: float | None = None
    gamma: float | None = None
    beta: float | None = None

    def prepare(self, pool: Pool) -> GlobalTerm:
        p, gamma, beta = self._constants(pool)
        return GlobalTerm(unit_instructions(pool, self.router), p, gamma, beta)

    def _constants(self, pool: Pool) -> tuple[float, float, float]:
        stored, embedder = pool.index.calibration, pool.index.embedder
        p = self.p
        if p is None:
            p = stored.p if stored else THRESHOLDS.get(embedder.embedder) if embedder else None
        gamma = self.gamma if self.gamma is not None else stored.gamma if stored else GAMMA
        beta = self.beta if self.beta is not None else stored.beta if stored else BETA
        pool.require(self.router, instructions=True)
        if p is None:
            raise RouterError(
                "a threshold p for the pool's embedder",
                f"none known for {embedder.embedder if embedder else 'a pool without embedder'}",
                "Calibrate the pool or give p.",
            )
        return p, gamma, beta


def unit_instructions(pool: Pool, router: str) -> Float[Tensor, "E G"]:
    """The experts' instruction embeddings at unit length; raises `RouterError` naming the experts without one."""
    pool.require(router, instructions=True)
    vectors = [expert.instruction.float() for expert in pool if expert.instruction is not None]
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1)
