"""A global signal from the base model's own hidden states: no other model, and no words stored."""

from dataclasses import dataclass

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Asked, Need
from glider.routing.signals.base import absent, lead, profiles, signal
from glider.shapes import Float, Tensor

USUAL_LEAD = 1.0  # the median lead of a query's own expert
THRESHOLD = 0.35


@dataclass(frozen=True)
class States:
    """Lead of the cosine between a query's states and each expert's mean states, both less what all experts share."""

    means: Float[Tensor, "E H"]
    needs: frozenset[Need] = frozenset({"hidden"})

    def of(self, asked: Asked, without: int | None = None) -> Float[Tensor, "B E"]:
        assert asked.hidden is not None
        kept = [i for i in range(len(self.means)) if i != without]
        shared = self.means[kept].mean(dim=0)
        query, experts = (torch.nn.functional.normalize(part - shared, dim=-1) for part in (asked.hidden, self.means))
        scores = query @ experts.T
        return lead(scores, absent(scores, without)) / USUAL_LEAD


@signal("hidden")
@dataclass(frozen=True)
class Hidden:
    """global_e = lead of the cosine of mean hidden states, query's and e's training inputs', after an eighth of the base.

    States of the bare base model on both ends of a text, less the mean over the experts. Needs no embedder and no LLM.
    """

    def prepare(self, pool: Pool, router: str) -> States:
        found = profiles(pool, router)
        if lacking := [e.name for e, kept in zip(pool, found, strict=True) if kept.hidden is None]:
            raise RouterError(
                f"hidden states in the profile of every expert (router {router})",
                f"none in {', '.join(lacking)}",
                "Make the profiles again with `glider expert profile`.",
            )
        return States(torch.stack([kept.hidden.float() for kept in found if kept.hidden is not None]))

    def threshold(self, pool: Pool) -> float | None:
        return THRESHOLD
