"""LoraRetriever: the experts nearest to the query, as a mixture or fused (arXiv 2402.09997)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch

from glider.errors import RouterError
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.routing.base import Decision, Prepared, Site, absent_at, router
from glider.routing.nearest import By, ByEmbedding, Uniform, largest_scores, require_by, require_count
from glider.routing.products import require_equal_ranks
from glider.routing.select import Select
from glider.routing.static import MergedExpert
from glider.shapes import Float, Int, Tensor


@router("loraretriever", paper="arXiv:2402.09997")
@dataclass(frozen=True)
class LoraRetriever(ByEmbedding):
    """The K experts nearest to the query, composed for all its tokens.

    - "mixture": the average of the outputs, 1/K * sum of s_e B_e A_e x.
    - "fusion": the average of the parameters, A and B each by itself (scalings as sqrt(s) in both, as in PEFT's
      "linear"): 1/K^2 * sum over i, j of B_i A_j x. With Q_ij = (B_i + B_j)(A_i + A_j) this is
      1/K^2 * (sum over i < j of Q_ij - (K - 2) * sum of B_i A_i), so that each pair of experts becomes one expert
      more: E (E + 1) / 2 in all, for small pools. Needs equal ranks.

    As in the paper an expert is the mean embedding of inputs of its task (`by=samples`, from its profile), and the
    query its text. The paper also trains the embedder on a part of the tasks, with an instruction before each text:
    that is not done here, the pool's own embedder embeds. `by=descriptions` needs no profiles.
    """

    k: int = 3
    composition: Literal["mixture", "fusion"] = "mixture"
    by: By = "samples"

    def __post_init__(self) -> None:
        require_count(self.k)
        require_by(self.by)
        if self.composition not in ("mixture", "fusion"):
            raise RouterError("a composition of mixture, fusion", repr(self.composition), "Check the spelling.")

    @staticmethod
    def renewed(settings: Mapping[str, Any]) -> dict[str, Any]:
        """Descriptions used to be compared."""
        return {"by": "samples"}

    def selection(self) -> Select:
        return Uniform(self.k)

    def prepare(self, pool: Pool) -> Prepared:
        prepared = super().prepare(pool)
        if self.composition == "mixture":
            return prepared
        require_equal_ranks(pool.experts, "loraretriever with fusion", "Choose composition mixture.")
        pairs = tuple(_pair(first, second) for first, second in combinations(pool.experts, 2))
        experts = (*pool.experts, *pairs)
        sites = {name: Site(name, absent_at(name, experts)) for name in pool.sites}
        return Prepared(experts, sites, prepared.global_term)

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        if self.composition == "mixture" or term is None:
            return super().route(site, x, term)
        count = term.shape[1]
        absent = site.absent[:count]
        k = min(self.k, int((~absent).sum()))
        _, singles = largest_scores(term.masked_fill(absent, -torch.inf), k)  # (T, K)
        pairs = _pair_columns(singles, count)  # (T, K (K - 1) / 2)
        single_weights = torch.full(singles.shape, (1 if k == 1 else 2 - k) / k**2, device=x.device)
        crossed = torch.full(pairs.shape, 1 / k**2, device=x.device)
        return Decision(torch.cat([singles, pairs], dim=1), torch.cat([single_weights, crossed], dim=1))


def _pair(first: Expert, second: Expert) -> MergedExpert:
    """(B_i + B_j)(A_i + A_j) at the sites of both."""
    pairs = {}
    for site in (site for site in first.sites if site in second.sites):
        sums = [torch.zeros(()), torch.zeros(())]
        for expert in (first, second):
            root = expert.scaling(site) ** 0.5
            sums = [total + root * factor.float() for total, factor in zip(sums, expert.factors(site), strict=True)]
        pairs[site] = (sums[0], sums[1])
    return MergedExpert(f"{first.name}*{second.name}", pairs)


def _pair_columns(singles: Int[Tensor, "T K"], count: int) -> Int[Tensor, "T P"]:
    """Columns of the pairs of the kept experts: after the `count` single ones, in the order of `combinations`."""
    pairs = list(combinations(range(singles.shape[1]), 2))
    left = singles[:, [i for i, _ in pairs]]
    right = singles[:, [j for _, j in pairs]]
    low, high = torch.minimum(left, right), torch.maximum(left, right)
    return count + low * (2 * count - low - 1) // 2 + high - low - 1
