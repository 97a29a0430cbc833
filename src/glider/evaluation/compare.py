"""Several routers on the same rows: one table, paired against the first."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from glider.base_model import load_base
from glider.contribute.examples import Row
from glider.errors import RouterError
from glider.evaluation.scoring import RowScores, require_scorable, score_rows
from glider.evaluation.statistics import mean_interval, paired_p
from glider.experts.pool import Pool
from glider.instructions.describers import Describer
from glider.layers.routed_linear import RoutedLinear
from glider.loading import base_of, load, open_pool
from glider.model import RoutedModel
from glider.routing.base import Router, routers

Tick = Callable[[str, int], None]  # router, rows done


@dataclass(frozen=True)
class Entry:
    """One router's row of the table."""

    router: str
    metric: str
    score: float
    low: float
    high: float
    exact: float | None
    p_value: float | None  # against the first router; None for the first itself
    tokens_per_second: float
    expert_megabytes: float  # stacked experts and router vectors in memory
    scores: list[float]
    note: str = ""


def compare(
    pool: str | Path,
    rows: Sequence[Row],
    names: Sequence[str],
    *,
    base: str | None = None,
    fewshot: Sequence[Row] = (),
    max_new_tokens: int = 48,
    describer: Describer | None = None,
    tick: Tick = lambda router, done: None,
) -> Iterator[Entry]:
    """Score each router on the rows; yields an entry as each is done.

    Every router is checked against the pool before a model is loaded: an unknown name, a pool that lacks what a router
    needs, `lorahub` without few-shot rows. `oracle` is the best single expert on these very rows.
    `describer` describes the rows; where it fails the comparison ends, since a failure must not become a score.
    """
    opened = open_pool(pool)
    _check(names, opened, fewshot)
    require_scorable(rows)
    first: list[float] | None = None
    for name in names:
        entry = _entry(name, opened, rows, base, fewshot, max_new_tokens, describer, first, tick)
        first = first if first is not None else entry.scores
        yield entry


def _check(names: Sequence[str], pool: Pool, fewshot: Sequence[Row]) -> None:
    for name in names:
        if name == "oracle":
            continue
        if name == "lorahub":
            if not fewshot:
                raise RouterError("few-shot rows for lorahub", "none", "Give --fewshot rows of the training split.")
            continue
        routers.create(name).prepare(pool)


def _entry(
    name: str,
    pool: Pool,
    rows: Sequence[Row],
    base: str | None,
    fewshot: Sequence[Row],
    max_new_tokens: int,
    describer: Describer | None,
    first: list[float] | None,
    tick: Tick,
) -> Entry:
    if name == "oracle":
        singles = [_run(f"single:{e}", f"single:{e}", pool, rows, base, max_new_tokens, None, tick) for e in pool.names]
        position = max(range(len(singles)), key=lambda i: sum(singles[i][0].scores))
        return _summary(name, *singles[position], first, f"single:{pool.names[position]}")
    router: str | Router = name
    if name == "lorahub":
        router = _lorahub(pool, base, fewshot)
    return _summary(name, *_run(name, router, pool, rows, base, max_new_tokens, describer, tick), first)


def _lorahub(pool: Pool, base: str | None, fewshot: Sequence[Row]) -> Router:
    from glider.contribute.lorahub import search_lorahub

    return search_lorahub(load_base(base or base_of(pool)), pool, fewshot).router


def _run(
    name: str,
    router: "str | Router",
    pool: Pool,
    rows: Sequence[Row],
    base: str | None,
    max_new_tokens: int,
    describer: Describer | None,
    tick: Tick,
) -> tuple[RowScores, float, float]:
    """Scores, seconds, and megabytes of stacked experts."""
    model = load(base, pool.path, router=router, describer=describer, strict=True)
    began = time.perf_counter()
    scored = score_rows(model, rows, max_new_tokens, lambda done: tick(name, done))
    return scored, time.perf_counter() - began, _megabytes(model)


def _summary(
    name: str, scored: RowScores, seconds: float, megabytes: float, first: list[float] | None, note: str = ""
) -> Entry:
    low, high = mean_interval(scored.scores)
    return Entry(
        router=name,
        metric=scored.metric,
        score=sum(scored.scores) / len(scored.scores),
        low=low,
        high=high,
        exact=None if scored.exact is None else sum(scored.exact) / len(scored.exact),
        p_value=None if first is None else paired_p(first, scored.scores),
        tokens_per_second=scored.tokens / seconds,
        expert_megabytes=megabytes,
        scores=scored.scores,
        note=note,
    )


def _megabytes(model: RoutedModel) -> float:
    layers = [module for module in model.model.modules() if isinstance(module, RoutedLinear)]
    tensors: list[torch.Tensor] = [buffer for layer in layers for buffer in layer.bank.buffers()]
    for layer in layers:
        held = (getattr(layer.site, field.name) for field in fields(layer.site) if field.name != "absent")
        tensors += [value for value in held if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
