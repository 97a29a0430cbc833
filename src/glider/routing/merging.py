"""The pool merged into one expert: the mean of the products B A, TIES or DARE."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from glider.errors import RouterError
from glider.experts.expert import ExpertLike
from glider.experts.pool import Pool
from glider.routing.base import router
from glider.routing.static import MergedExpert, Static
from glider.shapes import Float, Tensor

Pair = tuple[Float[Tensor, "R D"], Float[Tensor, "O R"]]
ShortPair = tuple[Float[Tensor, "r D"], Float[Tensor, "O r"]]  # of another rank than the pair it is made from
# TIES keeps the largest fifth, DARE drops nine in ten
DENSITIES = {"ties": 0.2, "dare": 0.1}


@router("merge", paper="arXiv:2306.01708, arXiv:2311.03099")
@dataclass(frozen=True)
class Merge(Static):
    """One expert made of all, over the products P_e = s_e B_e A_e; an expert absent at a site counts as zero there.

    - "mean": 1/E * sum of P_e, exact, with the factors concatenated; no product is formed.
    - "ties" (arXiv 2306.01708): trim each P_e to its largest `density`, elect the sign of the sum, average
      the values that agree with it (its scale lambda is 1). By PEFT's own function.
    - "dare" (arXiv 2311.03099): drop values at random, divide the rest by `density`, then the mean. By
      PEFT's own function; `seed` decides what is dropped.

    `rank` truncates the result by SVD (the best approximation of that rank); None keeps all of it. `density` None is
    that of the paper: 0.2 for TIES, 0.1 for DARE. PEFT's types "ties_svd" and "dare_linear_svd" compute the same; its
    "linear", "ties" and "dare_linear" combine A and B each by itself, which has cross terms B_i A_j, and this does not.
    """

    method: Literal["mean", "ties", "dare"] = "mean"
    rank: int | None = None
    density: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("mean", "ties", "dare"):
            raise RouterError("a merge method of mean, ties, dare", repr(self.method), "Check the spelling.")
        if self.rank is not None and self.rank < 1:
            raise RouterError("a rank of at least 1", str(self.rank), "Give a larger one, or none for the exact merge.")
        if self.density is None:
            return
        if self.method == "mean":
            raise RouterError("no density for the mean", str(self.density), "Choose the method ties or dare.")
        if not 0 < self.density < 1:
            raise RouterError("a density in (0, 1)", str(self.density), "Give the share of values to keep.")

    def expert(self, pool: Pool) -> MergedExpert:
        require_experts(pool)
        if self.method == "mean":
            pairs = weighted_sum(pool, {name: 1 / len(pool) for name in pool.names})
            return MergedExpert("merge", {site: self._cut(*pair) for site, pair in pairs.items()})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return MergedExpert(f"merge-{self.method}", {site: self._sparse(pool, site) for site in pool.sites})

    def _cut(self, a: Float[Tensor, "R D"], b: Float[Tensor, "O R"]) -> ShortPair:
        """Concatenated factors are exact; more of them than the site is wide would only cost."""
        rank = min(self.rank or len(a), a.shape[1], b.shape[0])
        return truncated(a, b, rank) if rank < len(a) else (a, b)

    def _sparse(self, pool: Pool, site: str) -> Pair:
        from peft.utils.merge_utils import dare_linear, ties  # PEFT brings transformers

        density = self.density or DENSITIES[self.method]
        present = [expert for expert in pool if site in expert.sites]
        products = [product(expert, site) for expert in present]
        if self.method == "ties":  # a mean already, over the values that agree
            merged = ties(products, torch.ones(len(present)), density)
        else:
            merged = dare_linear(products, torch.full((len(present),), 1 / len(pool)), density)
        return factored(merged, self.rank)


def require_experts(pool: Pool) -> None:
    """Raise `RouterError` for an empty pool."""
    if not len(pool):
        raise RouterError("a pool with experts", "an empty one", "Add experts: `glider pool add`.")


def product(expert: ExpertLike, site: str) -> Float[Tensor, "O D"]:
    """s B A in float32."""
    a, b = expert.factors(site)
    return expert.scaling(site) * (b.float() @ a.float())


def weighted_sum(pool: Pool, weights: Mapping[str, float]) -> dict[str, Pair]:
    """sum of w_e s_e B_e A_e at every site, as concatenated factors (float32).

    Experts of weight zero are left out; a site where none is left is left out too.
    """
    pairs = {}
    for site in pool.sites:
        kept = [expert for expert in pool if weights.get(expert.name, 0.0) != 0 and site in expert.sites]
        if kept:
            factors = [expert.factors(site) for expert in kept]
            scales = [weights[expert.name] * expert.scaling(site) for expert in kept]
            a = torch.cat([own.float() for own, _ in factors])
            b = torch.cat([scale * own.float() for scale, (_, own) in zip(scales, factors, strict=True)], dim=1)
            pairs[site] = (a, b)
    return pairs


def truncated(a: Float[Tensor, "R D"], b: Float[Tensor, "O R"], rank: int) -> ShortPair:
    """The best factors of a lower rank: SVD of B A through the QR of the factors; B A is never formed."""
    q_b, r_b = torch.linalg.qr(b)  # (O, .), (., R)
    q_a, r_a = torch.linalg.qr(a.T)  # (D, .), (., R)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return vt[:rank] @ q_a.T, q_b @ (u[:, :rank] * s[:rank])


def factored(dense: Float[Tensor, "O D"], rank: int | None) -> Pair:
    """Factors of a dense matrix: of lower rank by SVD, else exact, one of them the identity.

    A sparse merge has full rank, so that its SVD would cost minutes and no factor would be smaller.
    """
    out, width = dense.shape
    if rank is None or rank >= min(out, width):
        return (dense, torch.eye(out)) if out <= width else (torch.eye(width), dense)
    u, s, vt = torch.linalg.svd(dense, full_matrices=False)
    return vt[:rank].contiguous(), u[:, :rank] * s[:rank]
