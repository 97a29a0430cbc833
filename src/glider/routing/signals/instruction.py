"""The paper's global signal: cosine of the query's embedded description and each expert's."""

from dataclasses import dataclass

import torch

from glider.experts.pool import Pool
from glider.routing.base import Need, QueryFeatures
from glider.routing.scores import cosine
from glider.routing.signals.base import absent, require_experts, signal
from glider.shapes import Float, Tensor

# p belongs to the embedder: the paper's for nomic (GLIDER, section 4.2); for MiniLM the value that separates held-in
# from held-out tasks under the paper's own GPT-4 descriptions
THRESHOLDS = {"nomic-ai/nomic-embed-text-v1.5": 0.8, "all-MiniLM-L6-v2": 0.63}


@dataclass(frozen=True)
class Cosines:
    """cosine(g_e, q)."""

    instructions: Float[Tensor, "E G"]  # unit length
    needs: frozenset[Need] = frozenset({"instructions"})

    def of(self, features: QueryFeatures, without: int | None = None) -> Float[Tensor, "B E"]:
        assert features.instructions is not None
        scores = cosine(features.instructions, self.instructions)
        return scores.masked_fill(absent(scores, without), -torch.inf)


@signal("instruction", paper="arXiv:2410.07172")
@dataclass(frozen=True)
class Instruction:
    """global_e = cosine(g_e, q), q the embedded description of the query's task, or its text (GLIDER, section 4.2)."""

    def prepare(self, pool: Pool) -> Cosines:
        return Cosines(unit_instructions(pool))

    def threshold(self, pool: Pool) -> float | None:
        embedder = pool.index.embedder
        return THRESHOLDS.get(embedder.embedder) if embedder else None


def unit_instructions(pool: Pool) -> Float[Tensor, "E G"]:
    """The experts' instruction embeddings at unit length; raises `RouterError` naming the experts without one."""
    require_experts(pool)
    pool.require(instructions=True)
    vectors = [expert.instruction.float() for expert in pool if expert.instruction is not None]
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1)
