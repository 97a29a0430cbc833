"""The table of a run: each router's mean on each set, with interval and paired test against the first router."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glider.errors import DataError
from glider.evaluation.harm import Harm, verdict_shares
from glider.evaluation.runs import Run
from glider.evaluation.statistics import holm, paired_tasks_p, task_mean, two_level_interval


@dataclass(frozen=True)
class Entry:
    """One router on one set. No score unless every task of the set that is the router's has a result."""

    router: str
    set: str
    tasks: int  # with a result
    missing: tuple[str, ...]  # failed, or not yet run
    score: float | None  # mean of task means
    rows_interval: tuple[float, float] | None  # 95 %, with other rows of these tasks
    tasks_interval: tuple[float, float] | None  # 95 %, with other tasks of the kind too
    p_value: float | None  # against the first router, on tasks that both have; None for the first itself
    p_holm: float | None  # adjusted over the routers of the set
    harm: Harm | None = None  # beside the router `base` of the run, on the tasks of both
    verdicts: dict[str, float] = field(default_factory=dict)  # share of rows of each


def table(run: Run) -> list[Entry]:
    """Entries by router, then set; raises `DataError` for results of one task that are of other rows."""
    named = {router if isinstance(router, str) else router.label for router in run.plan.routers}
    listed = [plan for plan in run.routers if plan.label in named]  # not the single experts of an oracle
    results = {
        (plan.label, name): {
            task.name: cell.read()
            for task in run.tasks
            if task.set == name and not run.absent(plan, task)
            for cell in [run.cells[plan.label, name, task.name]]
        }
        for plan in listed
        for name in run.plan.sets
    }
    bases = [plan.label for plan in listed if plan.router == "base"]
    entries = {}
    for name in run.plan.sets:
        raw = [
            None if i == 0 else _p_value(results[listed[0].label, name], results[plan.label, name])
            for i, plan in enumerate(listed)
        ]
        tested = [value for value in raw if value is not None]
        adjusted = iter(holm(tested))
        for plan, value in zip(listed, raw, strict=True):
            p_holm = None if value is None else next(adjusted)
            base = results[bases[0], name] if bases and plan.label != bases[0] else {}
            entries[plan.label, name] = _entry(plan.label, name, results[plan.label, name], value, p_holm, base)
    return [entries[plan.label, name] for plan in listed for name in run.plan.sets]


def _entry(
    router: str,
    where: str,
    results: Mapping[str, Any],
    p_value: float | None,
    p_holm: float | None,
    base: Mapping[str, Any],
) -> Entry:
    missing = tuple(task for task, result in results.items() if result is None)
    scores = [_scores(result) for result in results.values() if result is not None]
    if missing or not scores:
        return Entry(router, where, len(scores), missing, None, None, None, None, None)
    rows, tasks = two_level_interval(scores, resample_tasks=False), two_level_interval(scores)
    common = [name for name in results if base.get(name) is not None]
    verdicts = verdict_shares([row.get("verdict") for result in results.values() for row in result["results"]])
    harm = None
    if common:
        harm = Harm.of(*_pairs(base, results, common))
    return Entry(router, where, len(scores), (), task_mean(scores), rows, tasks, p_value, p_holm, harm, verdicts)


def _p_value(first: Mapping[str, Any], second: Mapping[str, Any]) -> float | None:
    if None in first.values() or None in second.values():
        return None
    common = [task for task in second if task in first]
    if not common:
        return None
    return paired_tasks_p(*_pairs(first, second, common))


def _pairs(
    first: Mapping[str, Any], second: Mapping[str, Any], tasks: Sequence[str]
) -> tuple[list[Sequence[float]], list[Sequence[float]]]:
    """Both routers' scores on the rows of these tasks: somebody may have changed what lies there."""
    for task in tasks:
        one, other = first[task], second[task]
        if _places(one) != _places(other):
            expected = f"results of the same rows of {other['set']}/{task}"
            got = f"other rows by {other['router']} than by {one['router']}"
            raise DataError(expected, got, "Remove the results of both, and evaluate anew.")
    return [_scores(first[task]) for task in tasks], [_scores(second[task]) for task in tasks]


def _places(result: Mapping[str, Any]) -> list[int]:
    return [row["place"] for row in result["results"]]


def _scores(result: Mapping[str, Any]) -> Sequence[float]:
    return [row["score"] for row in result["results"]]
