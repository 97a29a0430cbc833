"""HiLoRA: the sequence picks adapters by likelihood, the token picks their rank-one parts (arXiv 2510.12266)."""

from dataclasses import dataclass, replace

import torch

from glider.errors import QueryError, RouterError
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.routing.base import (
    Decision,
    GlobalScores,
    GlobalTerm,
    Need,
    Prepared,
    QueryFeatures,
    Site,
    absent_at,
    router,
)
from glider.routing.condition import Condition
from glider.routing.products import require_experts
from glider.routing.signals.base import signals
from glider.routing.static import MergedExpert
from glider.shapes import Float, Int, Tensor


@router("hilora", paper="arXiv:2510.12266")
@dataclass(frozen=True)
class Hilora:
    """Of each adapter that the query picks a token has the rank-one parts b_i a_i of largest s |b_i| |a_i . x|.

    The query picks every adapter whose share of the posterior is at least `share` of the best one's, and allots them
    `parts` by their shares, one or more each; a part weighs what its adapter's share is among those picked. The shares
    are a softmax over the Gaussian log-likelihoods of the query under each expert: those of the signal `hidden`,
    Gaussians of one covariance over the base's hidden states on the profile's inputs (its scores times `sharpness`).
    The two levels, the rank-one parts and their allotment by likelihood are the paper's; to which vectors it fits its
    Gaussians could not be read, nor how many parts it keeps and how they weigh: ours are inferred. Each part is an
    expert of rank one, so that any kernel runs them; scores run in PyTorch.
    """

    parts: int = 16
    share: float = 0.5
    global_: str = "hidden"
    sharpness: float = 3.0

    def __post_init__(self) -> None:
        if self.parts < 1 or not 0 < self.share <= 1 or not 0 < self.sharpness < float("inf"):
            got = f"parts {self.parts}, share {self.share:g}, sharpness {self.sharpness:g}"
            raise RouterError("parts of at least 1, a share in (0, 1], a sharpness above 0", got, "Mend the settings.")

    def prepare(self, pool: Pool) -> Prepared:
        require_experts(pool)
        term = GlobalTerm(signals.create(self.global_).prepare(pool), 1.0, 0.0, 1.0, self.global_)
        ranks = [max(site.rank for site in expert.sites.values()) for expert in pool]
        owner = torch.arange(len(pool)).repeat_interleave(torch.tensor(ranks))
        place = torch.cat([torch.arange(rank) for rank in ranks])
        experts = tuple(_part(e, i) for e, rank in zip(pool, ranks, strict=True) for i in range(rank))
        sites = {}
        for name in pool.sites:
            rows = torch.cat([_rows(e, name, rank, pool) for e, rank in zip(pool, ranks, strict=True)])
            sites[name] = Site(name, absent_at(name, experts), {"rows": rows, "owner": owner, "place": place})
        scores = _OfParts(term.scores, torch.tensor(ranks))
        return Prepared(experts, sites, replace(term, scores=scores))

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        term = prepared.global_term
        assert term is not None and isinstance(term.scores, _OfParts)
        whole = term.scores.whole.of(features)  # (B, E)
        chances = (self.sharpness * whole).softmax(dim=-1)
        picked = chances >= self.share * chances.amax(dim=-1, keepdim=True)
        shares = chances * picked / (chances * picked).sum(dim=-1, keepdim=True)
        return Condition.of(term.scores.spread(shares), torch.ones(len(shares)), term.signal)

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        if term is None:
            remedy = "Use RoutedModel's methods, or `with attached.routing(condition)`."
            raise QueryError("a query (this router has no local score of its own)", "none", remedy)
        scores = (x.float() @ site["rows"].T).abs().masked_fill((term <= 0) | site.absent, -torch.inf)
        owner, place = site["owner"], site["place"]
        by_adapter = scores.new_full((len(x), int(owner[-1]) + 1, int(place.max()) + 1), -torch.inf)  # (T, E, R)
        by_adapter[:, owner, place] = scores
        shares = term.new_zeros(by_adapter.shape[:2])  # (T, E); all parts of an adapter have its own
        shares = shares.scatter_reduce(1, owner.expand(len(x), -1), term, "amax")
        allotted = (self.parts * shares).round().clamp(1, by_adapter.shape[2]).long()
        least = by_adapter.sort(dim=-1, descending=True).values.gather(2, allotted[:, :, None] - 1)  # (T, E, 1)
        masked = scores.masked_fill((by_adapter < least)[:, owner, place], -torch.inf)
        most = max(1, int((masked > -torch.inf).sum(dim=-1).max()))
        values, experts = masked.topk(most, dim=-1)
        weights = torch.where(values > -torch.inf, term.gather(1, experts).float(), 0.0)
        return Decision(experts, weights, scores)


@dataclass(frozen=True)
class _OfParts:
    """The scores of whole adapters, repeated for their parts."""

    whole: GlobalScores
    ranks: Int[Tensor, " E"]

    @property
    def needs(self) -> frozenset[Need]:
        return self.whole.needs

    def of(self, features: QueryFeatures, without: int | None = None) -> Float[Tensor, "B P"]:
        return self.spread(self.whole.of(features, without))

    def spread(self, scores: Float[Tensor, "B E"]) -> Float[Tensor, "B P"]:
        return scores.repeat_interleave(self.ranks, dim=1)


def _part(expert: Expert, number: int) -> MergedExpert:
    """One rank-one part of an adapter, at the sites whose rank reaches so far."""
    pairs = {}
    for name, site in expert.sites.items():
        if number < site.rank:
            a, b = expert.factors(name)
            pairs[name] = (a[number : number + 1].float(), expert.scaling(name) * b[:, number : number + 1].float())
    return MergedExpert(f"{expert.name}#{number}", pairs)


def _rows(expert: Expert, name: str, rank: int, pool: Pool) -> Float[Tensor, "R D"]:
    """s |b_i| a_i of an adapter's parts at a site, zero where it has none."""
    width = next(e.sites[name].in_features for e in pool if name in e.sites)
    rows = torch.zeros(rank, width)
    if name in expert.sites:
        a, b = expert.factors(name)
        rows[: len(a)] = abs(expert.scaling(name)) * b.float().norm(dim=0)[:, None] * a.float()
    return rows
