"""The pool merged into one expert: the mean of the products B A, TIES or DARE."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from glider.errors import RouterError
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.routing.base import router
from glider.routing.products import (
    Pair,
    ShortPair,
    factored,
    nth_largest,
    product,
    require_experts,
    truncated,
    weighted_sum,
)
from glider.routing.static import MergedExpert, Static
from glider.shapes import Float, Tensor

# TIES keeps the largest fifth, DARE drops nine in ten
DENSITIES = {"ties": 0.2, "dare": 0.1}


@router("merge", paper="arXiv:2306.01708, arXiv:2311.03099")
@dataclass(frozen=True)
class Merge(Static):
    """One expert made of all, over the products P_e = s_e B_e A_e; an expert absent at a site counts as zero there.

    - "mean": 1/E * sum of P_e, exact, with the factors concatenated; no product is formed.
    - "ties" (arXiv 2306.01708): trim each expert to the largest `density` of its entries, elect the sign of the sum,
      average the values that agree with it (its scale lambda is 1). The paper trims an expert's whole vector (`trim`
      "vector", every site of it at once, so that sites of small products lose more); "site" trims each by itself, as
      PEFT does. Signs and averages by PEFT's own functions.
    - "dare" (arXiv 2311.03099): drop values at random, divide the rest by `density`, then the mean. By
      PEFT's own function; `seed` decides what is dropped.

    `rank` truncates the result by SVD (the best approximation of that rank); None keeps all of it. `density` None is
    that of the paper: 0.2 for TIES, 0.1 for DARE. PEFT's types "ties_svd" (trim "site") and "dare_linear_svd" compute
    the same; its "linear", "ties" and "dare_linear" combine A and B each by itself, which has cross terms B_i A_j, and
    this does not.
    """

    method: Literal["mean", "ties", "dare"] = "mean"
    rank: int | None = None
    density: float | None = None
    seed: int = 0
    trim: Literal["vector", "site"] = "vector"

    def __post_init__(self) -> None:
        if self.method not in ("mean", "ties", "dare"):
            raise RouterError("a merge method of mean, ties, dare", repr(self.method), "Check the spelling.")
        if self.rank is not None and self.rank < 1:
            raise RouterError("a rank of at least 1", str(self.rank), "Give a larger one, or none for the exact merge.")
        if self.trim not in ("vector", "site") or (self.trim == "site" and self.method != "ties"):
            raise RouterError("a trim of vector, site, for the method ties", repr(self.trim), "Leave it out.")
        if self.density is None:
            return
        if self.method == "mean":
            raise RouterError("no density for the mean", str(self.density), "Choose the method ties or dare.")
        if not 0 < self.density < 1:
            raise RouterError("a density in (0, 1)", str(self.density), "Give the share of values to keep.")

    @staticmethod
    def renewed(settings: Mapping[str, Any]) -> dict[str, Any]:
        """TIES used to trim each site by itself."""
        return {"trim": "vector"} if settings.get("method") == "ties" else {}

    def expert(self, pool: Pool) -> MergedExpert:
        require_experts(pool)
        if self.method == "mean":
            pairs = weighted_sum(pool, {name: 1 / len(pool) for name in pool.names})
            return MergedExpert("merge", {site: self._cut(*pair) for site, pair in pairs.items()})
        if self.method == "ties" and self.trim == "vector":
            least = {expert.name: self._smallest_entry(expert) for expert in pool}
            return MergedExpert("merge-ties", {site: self._elected(pool, site, least) for site in pool.sites})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return MergedExpert(f"merge-{self.method}", {site: self._sparse(pool, site) for site in pool.sites})

    @property
    def _share(self) -> float:
        return self.density or DENSITIES[self.method]

    def _smallest_entry(self, expert: Expert) -> float:
        """The smallest magnitude that an expert keeps, of all its entries at all its sites."""
        entries = sum(site.in_features * site.out_features for site in expert.sites.values())
        return nth_largest(lambda: (product(expert, site) for site in expert.sites), max(1, int(self._share * entries)))

    def _elected(self, pool: Pool, site: str, least: Mapping[str, float]) -> Pair:
        """The sign of the sum at a site of trimmed experts, and the mean of the values that agree with it."""
        from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge  # PEFT brings transformers

        deltas = [product(expert, site) for expert in pool if site in expert.sites]
        bounds = [least[expert.name] for expert in pool if site in expert.sites]
        trimmed = [delta.where(delta.abs() >= bound, 0.0) for delta, bound in zip(deltas, bounds, strict=True)]
        stacked = torch.stack(trimmed)
        return factored(disjoint_merge(stacked, calculate_majority_sign_mask(stacked)), self.rank)

    def _cut(self, a: Float[Tensor, "R D"], b: Float[Tensor, "O R"]) -> ShortPair:
        """Concatenated factors are exact; more of them than the site is wide would only cost."""
        rank = min(self.rank or len(a), a.shape[1], b.shape[0])
        return truncated(a, b, rank) if rank < len(a) else (a, b)

    def _sparse(self, pool: Pool, site: str) -> Pair:
        from peft.utils.merge_utils import dare_linear, ties  # PEFT brings transformers

        present = [expert for expert in pool if site in expert.sites]
        products = [product(expert, site) for expert in present]
        if self.method == "ties":  # a mean already, over the values that agree
            merged = ties(products, torch.ones(len(present)), self._share)
        else:
            merged = dare_linear(products, torch.full((len(present),), 1 / len(pool)), self._share)
        return factored(merged, self.rank)
