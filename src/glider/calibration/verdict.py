"""Thresholds of a pool's verdicts, chosen from its experts' held-back queries and from everyday requests."""

import warnings
from math import floor

import torch

from glider.calibration.threshold import sample, still_stands
from glider.errors import GliderWarning, PoolError
from glider.experts.pool import Pool
from glider.experts.thresholds import MIXED, SHARE, Nearness, Thresholds
from glider.routing.base import QueryFeatures
from glider.shapes import Float, Tensor
from glider.verdicts.background import Background, shipped
from glider.verdicts.contest import Contest

ABSTENTION = 0.02  # most of the experts' own queries that may be called nobody's
ACCEPTANCE = 0.02  # of everyday requests of a kind that the background has not seen, wanted
FITTING = 0.95  # share of its own queries that fit a pool of one expert
MOST_QUERIES = 2048  # of the pool: beyond, every expert gives fewer
LEAST_QUERIES = 8
MANY_EXPERTS, SAMPLED_EXPERTS = 256, 64  # beyond so many that have profiles, so many of them are asked


def choose_thresholds(
    pool: Pool,
    background: Background | None = None,
    experts: int | None = None,
    share: float = SHARE,
    nearest_by: Nearness = "signal",
    described: int | None = None,
) -> Thresholds:
    """Choose the thresholds of a pool's verdicts.

    `stranger` is the margin that all but 2 % of everyday requests stay below, each judged by a background without its
    kind; but never so high that more than 2 % of the experts' held-back queries, or of others like them (split
    conformal: the floor(0.02 (n + 1))-th smallest margin bounds it), would be called strangers. Experts without a
    profile are left out; of more than 256 with one, 64 stand for all of them. `experts`, `share`, `nearest_by` and
    `described` say what an unsure query gets, and are kept as they are. By default its tokens are routed one by one,
    but one with a description mixes the three nearest to that; by descriptions every one mixes three. Raises
    `PoolError` where no expert has a profile with held-back queries, or none of several a description that
    `nearest_by` would compare, or where it has nothing to choose since `experts` is 0.
    """
    if experts is None:
        experts = MIXED if nearest_by == "descriptions" else 0
    if nearest_by == "descriptions":
        _require_for_descriptions(pool, experts)
    profiles = [expert.profile for expert in pool]
    contest = Contest.of(profiles, shipped() if background is None else background)
    queries = _held_back(pool)
    if len(queries) < LEAST_QUERIES:
        raise PoolError(
            f"at least {LEAST_QUERIES} held-back queries in the experts' profiles",
            str(len(queries)),
            "Make profiles of training rows: `glider expert profile POOL/EXPERT ROWS`, then `glider pool add`.",
        )
    margins = contest.margins(QueryFeatures(len(queries), grams=tuple((query,) for query in queries))).amax(dim=-1)
    folds = range(len(contest.background.counts))
    strange = torch.cat([contest.strangers(fold).amax(dim=-1) for fold in folds])
    stranger = min(_quantile(strange, 1 - ACCEPTANCE), _conformal(margins, ABSTENTION))
    return Thresholds(
        stranger=round(stranger, 4),
        fits=round(max(stranger, _quantile(margins, 1 - FITTING)), 4),
        experts=experts,
        share=share,
        nearest_by=nearest_by,
        described=MIXED if described is None and not experts else described,
        false_abstention=round((margins < stranger).float().mean().item(), 4),
        false_acceptance=round((strange >= stranger).float().mean().item(), 4) if len(strange) else None,
        queries=len(margins),
        strangers=len(strange),
        names=tuple(pool.names),
        source="held-back queries of the profiles; everyday requests, each kind left out of the background in turn",
    )


def _require_for_descriptions(pool: Pool, experts: int) -> None:
    """Raise `PoolError` where descriptions cannot choose the experts that an unsure query mixes."""
    if not experts:
        remedy = "Let `experts` under `verdicts` in pool.json be 1 or more, or calibrate it with --unsure-by signal."
        raise PoolError("experts that an unsure query mixes, for descriptions to choose", "0", remedy)
    if len(pool) > 1 and all(expert.instruction is None for expert in pool):
        remedy = (
            'Describe them: `glider expert describe POOL/EXPERT "..."`, then `glider pool add`. Or calibrate the pool '
            "with --unsure-by signal."
        )
        raise PoolError("an expert with a description, which unsure queries are compared with", "none", remedy)


def renewed_thresholds(pool: Pool) -> Pool:
    """The pool with its thresholds chosen again, where it has some and its experts changed since (`still_stands`).

    Thresholds that cannot be chosen again stay, with a warning that says why.
    """
    stored = pool.index.verdicts
    if stored is None or still_stands(stored.names, pool.names):
        return pool
    try:
        return pool.set_verdicts(_like(pool, stored))
    except PoolError as fault:
        warnings.warn(f"the thresholds of verdicts are those of other experts: {fault}", GliderWarning, stacklevel=2)
        return pool


def _like(pool: Pool, stored: Thresholds) -> Thresholds:
    """Thresholds chosen again, with what an unsure query gets as it was stored."""
    return choose_thresholds(pool, pool.background, stored.experts, stored.share, stored.nearest_by, stored.mixed(True))


def _held_back(pool: Pool) -> list[Tensor]:
    profiles = {one.name: one.profile for one in pool if one.profile is not None and one.profile.has_words}
    sampled = sample(list(profiles), MANY_EXPERTS, SAMPLED_EXPERTS)
    most = max(LEAST_QUERIES, MOST_QUERIES // max(1, len(pool)))
    queries = (query for name, profile in profiles.items() if name in sampled for query in profile.queries[:most])
    return [query for query in queries if len(query)]


def _conformal(values: Float[Tensor, " N"], share: float) -> float:
    """The largest threshold below which a new value falls with at most this probability."""
    place = floor(share * (len(values) + 1))
    return values.sort().values[place - 1].item() if place else values.min().item()


def _quantile(values: Float[Tensor, " N"], share: float) -> float:
    return values.quantile(share).item() if len(values) else torch.inf
