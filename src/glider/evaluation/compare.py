"""Several routers on the same rows: one table, paired against the first."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from glider.contribute.fewshot_fits import Fit, fit_of
from glider.data.rows import Row
from glider.errors import DataError, RouterError
from glider.evaluation.evaluated_rows import EvaluatedRows
from glider.evaluation.harm import Harm, verdict_shares
from glider.evaluation.metrics import score_text
from glider.evaluation.statistics import mean_interval, paired_p
from glider.evaluation.task_rows import RowResult, score_rows_of
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel
from glider.inference.model import RoutedModel
from glider.inference.spec import BaseSpec, ModelSpec, open_pool
from glider.instructions.describers import Describer
from glider.layers.routed_linear import RoutedLinear
from glider.progress import NamedTick
from glider.routing.base import Router
from glider.routing.preparation import prepare
from glider.routing.products import require_experts
from glider.routing.requirements import needs_results
from glider.routing.specification import parsed, router_from


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
    harm: Harm | None = None  # beside the base, where that comes before it
    verdicts: dict[str, float] = field(default_factory=dict)  # share of rows of each


@dataclass(frozen=True)
class _Contender:
    """A router as the user wrote it, such as `glider` or `merge(method=ties)`."""

    label: str
    name: str
    settings: dict[str, Any]

    @classmethod
    def of(cls, text: str) -> "_Contender":
        return cls(text, *parsed(text))

    @property
    def method(self) -> Fit | None:
        """How it is fitted on few-shot rows, if it is; the settings are then those of the search."""
        return fit_of(self.name, self.settings)

    @property
    def of_results(self) -> bool:
        """Whether it is the best of the single experts on these very rows."""
        return needs_results(self.name, self.settings)

    def router(self) -> Router:
        return router_from(self.name, self.settings)


@dataclass(frozen=True)
class _Measured:
    metric: str
    results: Sequence[RowResult]
    seconds: float
    megabytes: float
    note: str = ""

    @property
    def scores(self) -> list[float]:
        return [result.score for result in self.results]

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.results)

    def entry(self, label: str, first: Sequence[float] | None, base: Sequence[float] | None) -> Entry:
        low, high = mean_interval(self.scores)
        exact = None
        if self.metric != "accuracy":
            matches = [score_text("exact_match", result.prediction, result.gold) for result in self.results]
            exact = sum(matches) / len(matches)
        return Entry(
            router=label,
            metric=self.metric,
            score=self.mean,
            low=low,
            high=high,
            exact=exact,
            p_value=None if first is None else paired_p(first, self.scores),
            tokens_per_second=sum(result.tokens for result in self.results) / self.seconds,
            expert_megabytes=self.megabytes,
            scores=self.scores,
            note=self.note,
            harm=None if base is None else Harm.of([base], [self.scores]),
            verdicts=verdict_shares([result.verdict for result in self.results]),
        )


def compare(
    pool: str | Path,
    rows: Sequence[Row],
    names: Sequence[str],
    *,
    base: BaseSpec | str | None = None,
    fewshot: Sequence[Row] = (),
    max_new_tokens: int = 48,
    describer: Describer | None = None,
    require_key: str | Path | None = None,
    tick: NamedTick = lambda router, done: None,
) -> Iterator[Entry]:
    """Score each router on the rows; yields an entry as each is done.

    A router may carry settings: `merge(method=ties)`, `glider(top_k=1)`, `lorahub(budget=80)`. Every one is checked
    before the model is loaded: an unknown name or setting, a pool that lacks what a router needs or has fewer experts
    than it keeps, `lorahub` without few-shot rows or with rows that are evaluated, rows whose score would mean nothing.
    `require_key` as for `glider.load`. `oracle` is the best single expert on these very rows. `describer` describes
    the rows; where it fails the comparison ends, since a failure must not become a score.
    """
    opened = open_pool(pool, require_key)
    contenders = [_Contender.of(name) for name in names]
    selected = EvaluatedRows.of(rows)
    for contender in contenders:
        _require(contender, opened, rows, fewshot)
    opened.verify()
    loaded = BaseSpec.of(base).load_base_of(opened)
    bench = _Bench(opened, loaded, selected, max_new_tokens, describer, tick)
    first: list[float] | None = None
    bare: list[float] | None = None  # of the base, where it comes before
    for contender in contenders:
        entry = bench.measured(contender, fewshot).entry(contender.label, first, bare)
        first = first if first is not None else entry.scores
        bare = entry.scores if bare is None and contender.name == "base" else bare
        yield entry


def _require(contender: _Contender, pool: Pool, rows: Sequence[Row], fewshot: Sequence[Row]) -> None:
    """Raise the error of a contender that cannot be run."""
    if contender.of_results:
        require_experts(pool)
    elif contender.method is not None:
        contender.method.check_fit(pool, **contender.settings)
        if not fewshot:
            got = "Give --fewshot rows of the training split."
            raise RouterError(f"few-shot rows for {contender.name}", "none", got)
        if {(row.input, row.output) for row in fewshot} & {(row.input, row.output) for row in rows}:
            raise DataError("few-shot rows that are not evaluated", "evaluated ones", "Give rows of another split.")
    else:
        prepare(contender.router(), pool)


@dataclass(frozen=True)
class _Bench:
    """One base model in memory, on which the routers are measured in turn."""

    pool: Pool
    base: BaseModel
    selected: EvaluatedRows
    max_new_tokens: int
    describer: Describer | None
    tick: NamedTick

    def measured(self, contender: _Contender, fewshot: Sequence[Row]) -> _Measured:
        if contender.method is not None:
            router, _ = contender.method.fit(self.base, self.pool, fewshot, **contender.settings)
            return self._run(contender.label, router)
        if not contender.of_results:
            return self._run(contender.label, contender.router())
        singles = (f"single:{name}" for name in self.pool.names)
        runs = [self._run(single, router_from(single, {}), note=single) for single in singles]
        return max(runs, key=lambda run: run.mean)  # the first of equals

    def _run(self, label: str, router: Router, note: str = "") -> _Measured:
        model = ModelSpec(router=router).over(self.base, self.pool)
        try:
            one = replace(self.selected, rows=self.selected.rows[:1])
            score_rows_of(model, one, None, max_new_tokens=1)  # what only a first call costs is not timed
            model.describer, model.strict = self.describer, True
            began = time.perf_counter()
            results = score_rows_of(
                model, self.selected, None, self.max_new_tokens, tick=lambda done: self.tick(label, done)
            )
            return _Measured(self.selected.metric, results, time.perf_counter() - began, _megabytes(model), note)
        finally:
            model.detach()


def _megabytes(model: RoutedModel) -> float:
    layers = [module for module in model.model.modules() if isinstance(module, RoutedLinear)]
    tensors: list[torch.Tensor] = [buffer for layer in layers for buffer in layer.current.bank.buffers()]
    for layer in layers:
        tensors += layer.current.site.tensors.values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
