"""Hard-routed MoR-LoRA: one adapter a token, at the scale that it was trained at (arXiv 2606.31413)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Decision, GlobalTerm, Prepared, QueryFeatures, Site, router
from glider.routing.compose import Composed
from glider.routing.condition import Condition
from glider.routing.global_part import GlobalPart
from glider.routing.local_scores.base import LocalScore, local_scores
from glider.routing.select import Select, TopK
from glider.shapes import Float, Tensor


@router("mor-lora", paper="arXiv:2606.31413")
@dataclass(frozen=True)
class MorLora(Composed):
    """Where the query fits an expert (max global > p): the best expert of each token, alone and with weight 1.

    Elsewhere GLIDER's rule, `select` over alpha * global + local. The paper trains a shared router on reasoning traces,
    together with a small LoRA of the attention layers; here the scores are those of the pool (`local`, `global_`), and
    what is taken is its hard selection at unit scale. Only its abstract could be read. A query that the pool's verdicts
    would settle is routed token by token all the same. Decided in PyTorch; the experts run in any kernel.
    """

    select: Select = TopK(2)
    global_: str | None = None
    p: float | None = None
    gamma: float | None = None
    beta: float | None = None
    local: str = "gates"
    local_settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.local_score()  # refuses bad settings now, not at the first token
        self.global_part()

    def local_score(self) -> LocalScore:
        return local_scores.create(self.local, **self.local_settings)

    def global_part(self) -> GlobalPart:
        return GlobalPart(self.global_, self.p, self.gamma, self.beta)

    def prepare(self, pool: Pool) -> Prepared:
        """As for GLIDER; each site also knows the bound of the term of queries without a description."""
        prepared = super().prepare(pool)
        terms = [term for term in (prepared.global_term, prepared.described_term) if term is not None]
        if wrong := [term for term in terms if not (term.p > 0 and term.gamma > 0 and term.beta >= 0)]:
            got = f"p = {wrong[0].p:g}, gamma = {wrong[0].gamma:g}, beta = {wrong[0].beta:g}"
            raise RouterError("p and gamma above 0 and beta from 0 on", got, "Calibrate the pool, or give constants.")
        bound = torch.full((len(pool),), _bound(terms[0]))
        sites = {n: replace(s, tensors={**s.tensors, "bound": bound}) for n, s in prepared.sites.items()}
        return replace(prepared, sites=sites)

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        """As for GLIDER; the rows of another term than the sites' are shifted so that their own bound lies at theirs.

        No softmax sees the shift, and `route` knows a row by its term alone.
        """
        condition, term = super().condition(prepared, features), prepared.global_term
        if term is None or condition.alpha is None or not prepared.sites:
            return condition
        bound = next(iter(prepared.sites.values()))["bound"][0]
        shift = bound - bound.new_tensor(_bound(term))
        return replace(condition, shift=shift.to(condition.alpha).expand(condition.count)) if shift else condition

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        soft = super().route(site, x, term)
        if term is None or soft.scores is None:
            return soft
        fits = term.amax(dim=-1) > site["bound"][0]
        best = torch.zeros_like(soft.weights)
        best[:, 0] = 1.0  # every selection names the best expert first
        return Decision(soft.experts, torch.where(fits[:, None], best, soft.weights), soft.scores)


def _bound(term: GlobalTerm) -> float:
    """Midway between beta * p, the most that alpha * global is of a query that fits no expert, and (gamma + beta) * p,
    which it is above of one that fits."""
    return (term.beta + term.gamma / 2) * term.p
