"""Experts chosen by their embeddings alone, for a whole query: retrieval, AdapterSoup, LoraRetriever."""

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch

from glider.errors import QueryError, RouterError
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.routing.base import Decision, GlobalTerm, Prepared, Site, absent_at, router
from glider.routing.compose import Composed
from glider.routing.select import Select
from glider.routing.signals.instruction import Cosines, unit_instructions
from glider.routing.static import MergedExpert
from glider.shapes import Float, Int, Tensor


@dataclass(frozen=True)
class Nearest:
    """Keep the k largest scores; weights by softmax over the kept, so that one expert has weight 1 exactly."""

    k: int = 1

    def __post_init__(self) -> None:
        _require_count(self.k)

    def __call__(self, scores: Float[Tensor, "T E"]) -> Decision:
        largest, experts = _largest(scores, self.k)
        return Decision(experts, largest.softmax(dim=-1), scores)


@dataclass(frozen=True)
class Uniform:
    """Keep the k largest scores with equal weights; minus infinity gets none."""

    k: int

    def __post_init__(self) -> None:
        _require_count(self.k)

    def __call__(self, scores: Float[Tensor, "T E"]) -> Decision:
        largest, experts = _largest(scores, self.k)
        kept = (largest > -torch.inf).float()
        return Decision(experts, kept / kept.sum(dim=-1, keepdim=True).clamp(min=1), scores)


@dataclass(frozen=True)
class Everywhere:
    """No local score: 0, or minus infinity where the expert is absent."""

    def prepare(self, pool: Pool) -> dict[str, Site]:
        return {name: Site(name, None, absent_at(name, pool.experts)) for name in pool.sites}

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        return torch.zeros(x.shape[0], len(site.absent), device=x.device).masked_fill(site.absent, -torch.inf)


@dataclass(frozen=True)
class Similarity:
    """cosine(g_e, q) / temperature."""

    router: str
    temperature: float = 1.0

    def prepare(self, pool: Pool) -> GlobalTerm:
        return GlobalTerm(Cosines(unit_instructions(pool, self.router)), p=1.0, gamma=0.0, beta=1 / self.temperature)


class _ByEmbedding(Composed):
    """score = cosine(g_e, q) / temperature. At a site that a chosen expert lacks, the next nearest stands in."""

    name = ""
    temperature: float = 1.0

    @property
    def local(self) -> Everywhere:
        return Everywhere()

    @property
    def global_term(self) -> Similarity:
        return Similarity(self.name, self.temperature)

    def route(self, site: Site, x: Float[Tensor, "T D"], condition: Float[Tensor, "T E"] | None) -> Decision:
        if condition is None:
            remedy = "Use RoutedModel's methods, or `with attached.routing(condition)`."
            raise QueryError(f"a query (router {self.name} has no local score)", "none", remedy)
        return super().route(site, x, condition)


@router("retrieval")
@dataclass(frozen=True)
class Retrieval(_ByEmbedding):
    """The expert whose embedding is nearest to the query's, for all its tokens; or the K nearest, mixed.

    score = cosine(g_e, q) / temperature; weights by softmax over the K kept, or equal. At a site that a chosen expert
    lacks, the next nearest stands in.
    """

    k: int = 1
    weighting: Literal["softmax", "equal"] = "softmax"
    temperature: float = 1.0

    name = "retrieval"

    def __post_init__(self) -> None:
        _require_count(self.k)
        if self.weighting not in ("softmax", "equal"):
            raise RouterError("a weighting of softmax, equal", repr(self.weighting), "Check the spelling.")
        if not 0 < self.temperature < float("inf"):
            raise RouterError("a temperature above 0", str(self.temperature), "Give --temperature such as 0.1.")

    @property
    def select(self) -> Select:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Nearest(self.k) if self.weighting == "softmax" else Uniform(self.k)


@router("adaptersoup", paper="arXiv:2302.07027")
@dataclass(frozen=True)
class AdapterSoup(_ByEmbedding):
    """The uniform merge of the K experts nearest to the query (choice by sentence similarity).

    y = W x + 1/K * sum over the K nearest of s_e B_e A_e x. The paper averages the weights of bottleneck adapters once
    for a domain, told by held-out sentences; here each query is its own domain, and the products are averaged: for
    linear experts the average of the products in weight space is the average of the outputs. Averages of A and of B
    each by itself have cross terms: `loraretriever` with fusion.
    """

    k: int = 3

    name = "adaptersoup"

    def __post_init__(self) -> None:
        _require_count(self.k)

    @property
    def select(self) -> Select:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Uniform(self.k)


@router("loraretriever", paper="arXiv:2402.09997")
@dataclass(frozen=True)
class LoraRetriever(_ByEmbedding):
    """The K experts nearest to the query, composed for all its tokens.

    - "mixture": the average of the outputs, 1/K * sum of s_e B_e A_e x.
    - "fusion": the average of the parameters, A and B each by itself (scalings as sqrt(s) in both, as in PEFT's
      "linear"): 1/K^2 * sum over i, j of B_i A_j x. With Q_ij = (B_i + B_j)(A_i + A_j) this is
      1/K^2 * (sum over i < j of Q_ij - (K - 2) * sum of B_i A_i), so that each pair of experts becomes one expert
      more: E (E + 1) / 2 in all, for small pools. Needs equal ranks.

    The paper trains its retriever on a part of the tasks; here the pool's own embeddings are compared.
    """

    k: int = 3
    composition: Literal["mixture", "fusion"] = "mixture"

    name = "loraretriever"

    def __post_init__(self) -> None:
        _require_count(self.k)
        if self.composition not in ("mixture", "fusion"):
            raise RouterError("a composition of mixture, fusion", repr(self.composition), "Check the spelling.")

    @property
    def select(self) -> Select:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Uniform(self.k)

    def prepare(self, pool: Pool) -> Prepared:
        prepared = super().prepare(pool)
        if self.composition == "mixture":
            return prepared
        _require_equal_ranks(pool)
        pairs = tuple(_pair(first, second) for first, second in combinations(pool.experts, 2))
        experts = (*pool.experts, *pairs)
        sites = {name: Site(name, None, absent_at(name, experts)) for name in pool.sites}
        return Prepared(experts, sites, prepared.global_term)

    def route(self, site: Site, x: Float[Tensor, "T D"], condition: Float[Tensor, "T E"] | None) -> Decision:
        if self.composition == "mixture" or condition is None:
            return super().route(site, x, condition)
        count = condition.shape[1]
        absent = site.absent[:count]
        kept = min(self.k, int((~absent).sum()))
        _, singles = _largest(condition.masked_fill(absent, -torch.inf), kept)  # (T, K)
        pairs = _pair_columns(singles, count)  # (T, K (K - 1) / 2)
        own = torch.full(singles.shape, (1 if kept == 1 else 2 - kept) / kept**2, device=x.device)
        crossed = torch.full(pairs.shape, 1 / kept**2, device=x.device)
        return Decision(torch.cat([singles, pairs], dim=1), torch.cat([own, crossed], dim=1))


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
    chosen = list(combinations(range(singles.shape[1]), 2))
    left = singles[:, [i for i, _ in chosen]]
    right = singles[:, [j for _, j in chosen]]
    low, high = torch.minimum(left, right), torch.maximum(left, right)
    return count + low * (2 * count - low - 1) // 2 + high - low - 1


def _require_equal_ranks(pool: Pool) -> None:
    for site in pool.sites:
        present = [expert for expert in pool if site in expert.sites]
        ranks = {expert.sites[site].rank for expert in present}
        negative = [expert.name for expert in present if expert.scaling(site) < 0]
        if len(ranks) > 1 or negative:
            got = f"a negative one of {negative[0]}" if negative else f"ranks {', '.join(map(str, sorted(ranks)))}"
            raise RouterError(
                "experts of equal rank and positive scaling (loraretriever with fusion)",
                f"{got} at {site}",
                "Choose composition mixture.",
            )


def _largest(scores: Float[Tensor, "T E"], k: int) -> tuple[Float[Tensor, "T K"], Int[Tensor, "T K"]]:
    values, experts = scores.float().topk(min(k, scores.shape[-1]), dim=-1)
    return values, experts


def _require_count(k: int) -> None:
    if k < 1:
        raise RouterError("k of at least 1", str(k), "Give 1 or more.")
