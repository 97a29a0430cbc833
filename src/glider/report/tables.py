"""The tables of a report as numbers: methods by sets of tasks, with intervals and paired tests."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from glider.evaluation.statistics import holm, paired_tasks_p, two_level_interval
from glider.report.cells import Place, Results, TaskResult
from glider.report.chance import Standing, standing
from glider.report.report_plan import KNOWN, MethodView, ReportPlan, TableView

LEVEL = 0.05


@dataclass(frozen=True)
class Column:
    """Tasks whose mean is one number of each method."""

    set: str
    title: str
    places: tuple[Place, ...]
    without_chance: bool = False  # the tasks that no method is known to be above guessing on are left out


@dataclass(frozen=True)
class Value:
    """One method on one column. No score unless every task has a result; none is missing where it has no part."""

    tasks: int
    missing: tuple[Place, ...] = ()
    score: float | None = None  # mean of task means
    interval: tuple[float, float] | None = None  # 95 %, over tasks and rows
    runs: tuple[float, ...] = ()  # the score of each run, where a method has several
    p_value: float | None = None  # against the reference
    p_holm: float | None = None  # adjusted over the column's methods
    difference: float | None = None  # to the reference
    difference_interval: tuple[float, float] | None = None  # 95 %, over tasks and rows
    best: bool = False  # of the methods that are no bounds

    @property
    def significant(self) -> bool:
        return self.p_holm is not None and self.p_holm < LEVEL


@dataclass(frozen=True)
class Line:
    """One method's row."""

    method: MethodView
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Table:
    """One table."""

    key: str
    title: str
    note: str
    reference: str | None
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]


def chance_tasks(plan: ReportPlan, results: Results) -> dict[Place, Standing]:
    """The tasks that no method of the first table is known to be above guessing on; bounds apart, which know the
    answers. A method counts with all the runs of it that any table has."""
    methods = [method for method in next(iter(plan.tables.values())).methods if not method.bound]
    every = [other.cells for table in plan.tables.values() for other in table.methods]
    runs = [sorted((cells for cells in every if {*cells} >= {*method.cells}), key=len) for method in methods]
    standings: dict[Place, Standing] = {}
    for name in plan.sets:
        for place in plan.places(name, results):
            several = [[result for cells in run if (result := results.of(cells, place))] for run in runs]
            value = standing(results[-1] for results in several if results)
            if value != "above chance":
                standings[place] = value
    return standings


def make_table(key: str, plan: ReportPlan, results: Results, chance: Container[Place]) -> Table:
    """Compute one table of the plan."""
    view = plan.tables[key]
    title, note = KNOWN.get(key, (key, ""))
    labels = [method.label for method in view.methods]
    reference = view.reference or (plan.reference if plan.reference in labels else None)
    columns = [column for name in view.sets or plan.sets for column in _columns(name, plan, results, chance)]
    values = [_column_values(column, view, results, reference) for column in columns]
    lines = tuple(Line(method, tuple(column[i] for column in values)) for i, method in enumerate(view.methods))
    return Table(key, view.title or title, view.note or note, reference, tuple(columns), lines)


def _columns(name: str, plan: ReportPlan, results: Results, chance: Container[Place]) -> list[Column]:
    """The set's column, and one without its tasks at chance if it has some, but not only such."""
    places = tuple(plan.places(name, results))
    title = plan.sets[name].title or name
    above = tuple(place for place in places if place not in chance)
    columns = [Column(name, title, places)]
    if above and len(above) < len(places):
        columns.append(Column(name, f"{title}, above chance", above, without_chance=True))
    return columns


def _column_values(column: Column, view: TableView, results: Results, reference: str | None) -> list[Value]:
    """The column of every method in order."""
    by_method = {
        method.label: {place: results.of(method.cells, place) for place in column.places if method.has(column.set)}
        for method in view.methods
    }
    values = [_value(by_method[method.label], len(method.cells)) for method in view.methods]
    compared = {} if reference is None else by_method.get(reference, {})
    pairs = {
        i: pair
        for i, method in enumerate(view.methods)
        if method.label != reference and (pair := _pairs(compared, by_method[method.label]))
    }
    p_values = {i: paired_tasks_p([a for a, _ in pair], [b for _, b in pair]) for i, pair in pairs.items()}
    base = next((values[i].score for i, method in enumerate(view.methods) if method.label == reference), None)
    for (i, p_value), adjusted in zip(p_values.items(), holm(list(p_values.values())), strict=True):
        score = values[i].score
        assert score is not None and base is not None
        differences = [[b - a for a, b in zip(*rows, strict=True)] for rows in pairs[i]]
        values[i] = replace(
            values[i],
            p_value=p_value,
            p_holm=adjusted,
            difference=score - base,
            difference_interval=two_level_interval(differences),
        )
    ranked = [
        round(value.score, 9)
        for value, method in zip(values, view.methods, strict=True)
        if value.score is not None and not method.bound
    ]
    return [
        replace(value, best=value.score is not None and not method.bound and round(value.score, 9) == max(ranked))
        for value, method in zip(values, view.methods, strict=True)
    ]


def _value(results: Mapping[Place, TaskResult | None], runs: int) -> Value:
    missing = tuple(place for place, result in results.items() if result is None)
    finished = [result for result in results.values() if result is not None]
    count = len(finished)
    if missing or not finished:
        return Value(count, missing)
    rows = [list(result.rows.values()) for result in finished]
    each = tuple(sum(result.runs[run] for result in finished) / count for run in range(runs)) if runs > 1 else ()
    score = sum(result.score for result in finished) / count
    return Value(count, score=score, interval=two_level_interval(rows), runs=each)


def _pairs(
    first: Mapping[Place, TaskResult | None], second: Mapping[Place, TaskResult | None]
) -> list[tuple[list[float], list[float]]]:
    """Both methods' scores on the rows of each task; none if a task is missing or its rows are not the same."""
    pairs = []
    for place, one in first.items():
        other = second.get(place)
        if one is None or other is None or one.sources != other.sources or one.rows.keys() != other.rows.keys():
            return []
        pairs.append(([one.rows[row] for row in one.rows], [other.rows[row] for row in one.rows]))
    return pairs
