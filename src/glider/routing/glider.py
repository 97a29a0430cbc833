"""GLIDER: a global term from the query's instruction, a local one from every token (arXiv 2410.07172)."""

from dataclasses import dataclass

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Condition, Decision, GlobalTerm, Prepared, Site, router
from glider.routing.scores import LocalScale, cosine, local_scores, standardised_gates
from glider.routing.select import Select, TopK
from glider.shapes import Float, Tensor

# p belongs to the embedder: the paper's for nomic (section 4.2); for MiniLM the value that separates held-in from
# held-out tasks under the paper's own GPT-4 descriptions
THRESHOLDS = {"nomic-ai/nomic-embed-text-v1.5": 0.8, "all-MiniLM-L6-v2": 0.63}


@router("glider", paper="arXiv:2410.07172")
@dataclass(frozen=True)
class Glider:
    """score = alpha * cosine(g_e, q) + std(x) . std(v_e) / sqrt(D), alpha = gamma * [max cosine > p] + beta.

    `p`, `gamma` and `beta` left at None are the pool's calibration, or without one the paper's 100 and 3 and the
    threshold known for the pool's embedder. Global scores and alpha belong to one query each (section 4.2).
    """

    select: Select = TopK(2)
    p: float | None = None
    gamma: float | None = None
    beta: float | None = None
    local_scale: LocalScale = "width"

    def prepare(self, pool: Pool) -> Prepared:
        pool.require("glider", gates=True, instructions=True)
        instructions = [expert.instruction for expert in pool if expert.instruction is not None]
        if not instructions:
            raise RouterError("a pool with experts", "an empty one", "Add experts: `glider pool add`.")
        p, gamma, beta = self._constants(pool)
        unit = torch.nn.functional.normalize(torch.stack(instructions).float(), dim=-1)
        return Prepared(pool.experts, standardised_gates(pool), GlobalTerm(unit, p, gamma, beta))

    def condition(self, prepared: Prepared, queries: Float[Tensor, "B G"]) -> Condition:
        term = prepared.global_term
        assert term is not None
        scores = cosine(queries, term.instructions)  # (B, E)
        confident = scores.amax(dim=-1) > term.p  # (B,)
        return Condition(scores, term.gamma * confident.float() + term.beta)

    def route(self, site: Site, x: Float[Tensor, "T D"], condition: Float[Tensor, "T E"] | None) -> Decision:
        scores = local_scores(x, site, self.local_scale)
        return self.select(scores if condition is None else scores + condition)

    def _constants(self, pool: Pool) -> tuple[float, float, float]:
        stored, embedder = pool.index.calibration, pool.index.embedder
        p = self.p
        if p is None:
            p = stored.p if stored else THRESHOLDS.get(embedder.embedder) if embedder else None
        if p is None:
            raise RouterError(
                "a threshold p for the pool's embedder",
                f"none known for {embedder.embedder if embedder else 'a pool without embedder'}",
                "Calibrate the pool or give p.",
            )
        gamma = self.gamma if self.gamma is not None else stored.gamma if stored else 100.0
        beta = self.beta if self.beta is not None else stored.beta if stored else 3.0
        return p, gamma, beta
