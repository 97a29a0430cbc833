"""Sums of the products s B A of a pool's experts, as factors."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from glider.errors import RouterError
from glider.experts.expert import ExpertLike
from glider.experts.pool import Pool
from glider.shapes import Float, Int, Tensor

Pair = tuple[Float[Tensor, "R D"], Float[Tensor, "O R"]]
ShortPair = tuple[Float[Tensor, "r D"], Float[Tensor, "O r"]]  # of another rank than the pair it is made from


def require_experts(pool: Pool) -> None:
    """Raise `RouterError` for an empty pool."""
    if not len(pool):
        raise RouterError("a pool with experts", "an empty one", "Add experts: `glider pool add`.")


def product(expert: ExpertLike, site: str) -> Float[Tensor, "O D"]:
    """s B A in float32."""
    a, b = expert.factors(site)
    return expert.scaling(site) * (b.float() @ a.float())


def weighted_sum(pool: Pool, weights: Mapping[str, float], sites: Iterable[str] | None = None) -> dict[str, Pair]:
    """sum of w_e s_e B_e A_e at every site (or at these), as concatenated factors (float32).

    Experts of weight zero are left out; a site where none is left is left out too.
    """
    pairs = {}
    for site in pool.sites if sites is None else sites:
        members = [expert for expert in pool if weights.get(expert.name, 0.0) != 0 and site in expert.sites]
        if members:
            factors = [expert.factors(site) for expert in members]
            scales = [weights[expert.name] * expert.scaling(site) for expert in members]
            a = torch.cat([left.float() for left, _ in factors])
            b = torch.cat([scale * right.float() for scale, (_, right) in zip(scales, factors, strict=True)], dim=1)
            pairs[site] = (a, b)
    return pairs


def weighted_factors(pool: Pool, weights: Mapping[str, float]) -> dict[str, Pair]:
    """sum of w_e A_e and sum of w_e B_e at every site, each by itself, with the root of the scaling in both (float32).

    An expert absent at a site counts as zero there; the experts' ranks must be equal (`require_equal_ranks`).
    """
    pairs = {}
    for site in pool.sites:
        members = [expert for expert in pool if weights.get(expert.name, 0.0) != 0 and site in expert.sites]
        if members:
            scaled = [(weights[expert.name] * expert.scaling(site) ** 0.5, expert.factors(site)) for expert in members]
            a = torch.stack([weight * left.float() for weight, (left, _) in scaled]).sum(dim=0)
            b = torch.stack([weight * right.float() for weight, (_, right) in scaled]).sum(dim=0)
            pairs[site] = (a, b)
    return pairs


def require_equal_ranks(experts: Sequence[ExpertLike], method: str, remedy: str) -> None:
    """Raise `RouterError` unless experts can be added factor by factor: one rank at a site, no scaling below 0."""
    for site in dict.fromkeys(site for expert in experts for site in expert.sites):
        present = [expert for expert in experts if site in expert.sites]
        ranks = {expert.sites[site].rank for expert in present}
        negative = [expert.name for expert in present if expert.scaling(site) < 0]
        if len(ranks) > 1 or negative:
            got = f"a negative one of {negative[0]}" if negative else f"ranks {', '.join(map(str, sorted(ranks)))}"
            raise RouterError(f"experts of equal rank and positive scaling ({method})", f"{got} at {site}", remedy)


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


def nth_largest(matrices: Callable[[], Iterable[Float[Tensor, "_ _"]]], n: int) -> float:
    """The n-th largest magnitude among the entries of many float32 matrices, exactly; made twice, one at a time.

    The bits of a float that is not negative order as an integer does: the first pass counts their upper halves, the
    second the lower halves of those that share the upper half looked for. Of fewer than n entries the smallest.
    """
    upper = torch.zeros(_HALF, dtype=torch.long)
    for matrix in matrices():
        upper += torch.bincount(_bits(matrix) >> 16, minlength=_HALF)
    high, above = _place(upper, n)
    lower = torch.zeros(_HALF, dtype=torch.long)
    for matrix in matrices():
        bits = _bits(matrix)
        lower += torch.bincount(bits[bits >> 16 == high] & (_HALF - 1), minlength=_HALF)
    low, _ = _place(lower, n - above)
    return torch.tensor((high << 16) + low, dtype=torch.int32).view(torch.float32).item()


_HALF = 1 << 16


def _bits(matrix: Float[Tensor, "_ _"]) -> Int[Tensor, " N"]:
    return matrix.float().abs().flatten().view(torch.int32)


def _place(counts: Int[Tensor, " N"], n: int) -> tuple[int, int]:
    """The highest place at which n have been counted from above, or the lowest with any, and how many lie above it."""
    passed = counts.flip(0).cumsum(0)
    reached = int((passed >= min(n, int(passed[-1]))).nonzero()[0])
    place = len(counts) - 1 - reached
    return place, int(passed[reached] - counts[place])
