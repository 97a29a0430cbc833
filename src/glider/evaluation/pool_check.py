"""Checks that experts help: the gain of each on its own task, and its effect on rows of other tasks."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from glider.data.rows import Row
from glider.errors import DataError
from glider.evaluation.evaluated_rows import EvaluatedRows
from glider.evaluation.harm import Harm, verdict_shares
from glider.evaluation.task_rows import RowResult, score_rows_of
from glider.experts.gains import Gain
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel
from glider.inference.spec import ModelSpec
from glider.progress import NamedTick


@dataclass(frozen=True)
class ExpertCheck:
    """One expert on its own rows, and on the rows of other tasks that were nearest to it.

    `gain` is the difference of the expert alone to the base, `routed` that of the pool to the base, on its own rows.
    `lent` is the difference of the pool to each row's own expert, on rows of other tasks whose best expert was this
    one: below zero it makes them worse.
    """

    expert: str
    metric: str
    rows: int
    base: float
    gain: Harm
    routed: Harm
    verdicts: dict[str, float]  # of its own rows
    lent_rows: int
    lent: Harm | None

    @property
    def measured(self) -> Gain:
        """The gain on its own rows, as a pool stores it."""
        difference = self.gain
        return Gain(
            metric=self.metric,
            rows=self.rows,
            base=self.base,
            alone=min(1.0, max(0.0, self.base + difference.difference)),
            low=difference.low,
            high=difference.high,
        )

    @property
    def hurts(self) -> bool:
        """Whether it is significantly worse than the base on its own task, or makes other tasks' rows significantly
        worse."""
        return self.gain.high < 0 or (self.lent is not None and self.lent.high < 0)


def check_pool(
    pool: Pool,
    base: BaseModel,
    rows: Mapping[str, Sequence[Row]],
    max_new_tokens: int = 32,
    tick: NamedTick = lambda router, done: None,
) -> list[ExpertCheck]:
    """Score each expert's rows by the base, by the expert alone and by the pool (`glider`).

    Three passes over the rows, whatever the number of experts. Raises `DataError` where there are rows of no expert.
    """
    names = [name for name in pool.names if rows.get(name)]
    if not names:
        raise DataError("rows of the experts' tasks", "none", "Give --data with {name} in the path.")
    selected = {name: EvaluatedRows.of(rows[name]) for name in names}
    bare = _scored("base", ["base"] * len(names), pool, base, selected, max_new_tokens, tick)
    alone = _scored("alone", [f"single:{name}" for name in names], pool, base, selected, max_new_tokens, tick)
    routed = _scored("glider", ["glider"] * len(names), pool, base, selected, max_new_tokens, tick)
    stored = pool.index.verdicts
    left = frozenset[str]() if stored is None else stored.left_to_base
    return [_check(name, selected, bare, alone, routed, left) for name in names]


def _scored(
    label: str,
    routers: Sequence[str],
    pool: Pool,
    base: BaseModel,
    selected: Mapping[str, EvaluatedRows],
    max_new_tokens: int,
    tick: NamedTick,
) -> dict[str, list[RowResult]]:
    results: dict[str, list[RowResult]] = {}
    done = 0
    for name, router in zip(selected, routers, strict=True):
        model = ModelSpec(router=router).over(base, pool)
        try:
            results[name] = score_rows_of(model, selected[name], None, max_new_tokens)
        finally:
            model.detach()
        done += len(results[name])
        tick(label, done)
    return results


def _check(
    name: str,
    selected: Mapping[str, EvaluatedRows],
    bare: Mapping[str, list[RowResult]],
    alone: Mapping[str, list[RowResult]],
    routed: Mapping[str, list[RowResult]],
    left: Collection[str],
) -> ExpertCheck:
    """One expert's; rows of the verdicts that are `left` to the base say nothing of the expert nearest to them."""
    base = [result.score for result in bare[name]]
    lent = [
        (before.score, after.score)
        for task in selected
        if task != name
        for before, after in zip(alone[task], routed[task], strict=True)
        if after.expert == name and after.verdict not in left
    ]
    return ExpertCheck(
        expert=name,
        metric=str(selected[name].metric),
        rows=len(base),
        base=sum(base) / len(base),
        gain=Harm.of([base], [[result.score for result in alone[name]]]),
        routed=Harm.of([base], [[result.score for result in routed[name]]]),
        verdicts=verdict_shares([result.verdict for result in routed[name]]),
        lent_rows=len(lent),
        lent=Harm.of([[before for before, _ in lent]], [[after for _, after in lent]]) if lent else None,
    )
