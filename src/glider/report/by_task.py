"""The first table's methods task by task, and which results are missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glider.report.cells import Place, Results
from glider.report.chance import Standing
from glider.report.report_plan import ReportPlan


@dataclass(frozen=True)
class TaskLine:
    """One task: its rows, what guessing gives (None for open answers), and each method's score."""

    place: Place
    rows: int
    guess: float | None
    standing: Standing
    scores: tuple[float | None, ...]


@dataclass(frozen=True)
class ByTask:
    """One set, task by task."""

    title: str
    methods: tuple[str, ...]
    lines: tuple[TaskLine, ...]


@dataclass(frozen=True)
class Lack:
    """A result that is missing."""

    method: str
    place: Place
    reason: str


def by_task(plan: ReportPlan, results: Results, chance: Mapping[Place, Standing]) -> list[ByTask]:
    """The scores of the first table's methods on every task, by set.

    Left out are sets that none of them was run on, and of a set the methods that have no part in it."""
    sets = []
    for name, view in plan.sets.items():
        places = plan.places(name, results)
        methods = [
            method
            for method in next(iter(plan.tables.values())).methods
            if method.has(name) or any(results.of(method.cells, place) for place in places)
        ]
        lines = []
        for place in places:
            several = [results.of(method.cells, place) for method in methods]
            finished = [result for result in several if result is not None]
            lines.append(
                TaskLine(
                    place,
                    max((len(result.rows) for result in finished), default=0),
                    finished[0].guess if finished else None,
                    chance.get(place, "above chance"),
                    tuple(None if result is None else result.score for result in several),
                )
            )
        if any(score is not None for line in lines for score in line.scores):
            sets.append(ByTask(view.title or name, tuple(method.label for method in methods), tuple(lines)))
    return sets


def lacks(plan: ReportPlan, results: Results) -> list[Lack]:
    """Every missing result of every table, once."""
    missing: dict[tuple[str, Place], Lack] = {}
    for table in plan.tables.values():
        for name in table.sets or plan.sets:
            for place in plan.places(name, results):
                for method in table.methods:
                    if method.has(name) and results.of(method.cells, place) is None:
                        lack = Lack(method.label, place, results.lack(method.cells, place))
                        missing.setdefault((method.label, place), lack)
    return list(missing.values())


def by_reason(lacks: Sequence[Lack]) -> list[tuple[str, str, list[Place]]]:
    """Method, reason and places, with the places of one reason together."""
    together: dict[tuple[str, str], list[Place]] = {}
    for lack in lacks:
        together.setdefault((lack.method, lack.reason), []).append(lack.place)
    return [(method, reason, places) for (method, reason), places in together.items()]
