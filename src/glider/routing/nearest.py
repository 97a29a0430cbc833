"""Experts chosen by their embeddings alone, for a whole query: what the methods that do so share."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from glider.errors import QueryError, RouterError
from glider.experts.pool import Pool
from glider.routing.base import Decision, GlobalTerm, Site, absent_at
from glider.routing.compose import Composed
from glider.routing.samples import examples_of, samples_of
from glider.routing.select import chances
from glider.routing.signals.instruction import Cosines, unit_instructions
from glider.shapes import Float, Int, Tensor

By = Literal["descriptions", "samples", "examples"]


@dataclass(frozen=True)
class Nearest:
    """Keep the k largest scores; weights by softmax over the kept, so that one expert has weight 1 exactly."""

    k: int = 1

    def __post_init__(self) -> None:
        require_count(self.k)

    def __call__(self, scores: Float[Tensor, "T E"]) -> Decision:
        largest, experts = largest_scores(scores, self.k)
        return Decision(experts, chances(largest), scores)


@dataclass(frozen=True)
class Uniform:
    """Keep the k largest scores with equal weights; minus infinity gets none."""

    k: int

    def __post_init__(self) -> None:
        require_count(self.k)

    def __call__(self, scores: Float[Tensor, "T E"]) -> Decision:
        largest, experts = largest_scores(scores, self.k)
        present = (largest > -torch.inf).float()
        return Decision(experts, present / present.sum(dim=-1, keepdim=True).clamp(min=1), scores)


@dataclass(frozen=True)
class Everywhere:
    """No local score: 0, or minus infinity where the expert is absent."""

    def prepare(self, pool: Pool) -> dict[str, Site]:
        return {name: Site(name, absent_at(name, pool.experts)) for name in pool.sites}

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        return torch.zeros(x.shape[0], len(site.absent), device=x.device).masked_fill(site.absent, -torch.inf)


@dataclass(frozen=True)
class Similarity:
    """cosine(g_e, q) / temperature."""

    temperature: float = 1.0
    by: By = "descriptions"

    def prepare(self, pool: Pool) -> GlobalTerm:
        beta = 1 / self.temperature
        if self.by == "descriptions":
            return GlobalTerm(Cosines(unit_instructions(pool)), p=1.0, gamma=0.0, beta=beta)
        scores = samples_of(pool) if self.by == "samples" else examples_of(pool)
        return GlobalTerm(scores, p=1.0, gamma=0.0, beta=beta, signal=self.by)


class ByEmbedding(Composed):
    """score = cosine(g_e, q) / temperature. At a site that a chosen expert lacks, the next nearest stands in.

    `by` says what of an expert is compared: its description's embedding with that of the query's description or text
    ("descriptions"), or what its profile keeps with the query's text: the mean embedding of its training inputs
    ("samples"), or the nearest of single inputs ("examples").
    """

    temperature: float = 1.0
    by: By = "descriptions"

    def local_score(self) -> Everywhere:
        return Everywhere()

    def global_part(self) -> Similarity:
        return Similarity(self.temperature, self.by)

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        if term is None:
            remedy = "Use RoutedModel's methods, or `with attached.routing(condition)`."
            raise QueryError("a query (this router has no local score)", "none", remedy)
        return super().route(site, x, term)


def largest_scores(scores: Float[Tensor, "T E"], k: int) -> tuple[Float[Tensor, "T K"], Int[Tensor, "T K"]]:
    """The k largest scores of each token and their experts."""
    values, experts = scores.float().topk(min(k, scores.shape[-1]), dim=-1)
    return values, experts


def require_count(k: int) -> None:
    """Raise `RouterError` for a k below 1."""
    if k < 1:
        raise RouterError("k of at least 1", str(k), "Give 1 or more.")


def require_by(by: str) -> None:
    """Raise `RouterError` for another word than those of `By`."""
    if by not in get_args(By):
        raise RouterError(f"by of {', '.join(get_args(By))}", repr(by), "Check the spelling.")
