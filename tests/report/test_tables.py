"""Every number of a table is the one that a calculation by hand gives, or there is none."""

from pathlib import Path

import pytest

from glider.errors import ConfigError
from glider.evaluation.statistics import holm, paired_tasks_p, two_level_interval
from glider.report.by_task import by_task, lacks
from glider.report.cells import Results
from glider.report.report_plan import ReportPlan
from glider.report.tables import Table, chance_tasks, make_table
from glider.report.wording import lacking, reading

A = {"base": [0, 0, 1, 0, 0, 0, 0, 0], "glider": [1, 1, 1, 1, 1, 1, 1, 0], "oracle": [1] * 8}
B = {"base": [0.1, 0.2, 0.3, 0.2], "glider": [0.5, 0.2, 0.3, 0.4], "oracle": [0.6, 0.5, 0.4, 0.5]}


@pytest.fixture
def filled(results: Path, write_cell) -> Path:
    """Three methods on two tasks."""
    for router in A:
        write_cell(router, "near", "a", A[router], guess=0.25)
        write_cell(router, "near", "b", B[router], guess=None)
    return results


def made(directory: Path, **told) -> Table:
    results = Results.read(directory)
    methods = told.pop("methods", ["base", "glider", {"cells": "oracle", "bound": True}])
    settings = {"reference": "base", "tables": {"table1": methods}, **told}
    plan = ReportPlan.parse(**settings).settled(results, directory)
    return make_table("table1", plan, results, chance_tasks(plan, results))


def test_numbers_are_those_of_the_rows(filled: Path) -> None:
    table = made(filled)
    assert table.title == "Methods" and [column.title for column in table.columns] == ["near"]
    (base,), (glider,), (oracle,) = (line.values for line in table.lines)
    assert base.score == pytest.approx((1 / 8 + 0.2) / 2)
    assert glider.score == pytest.approx((7 / 8 + 0.35) / 2)
    assert oracle.score == pytest.approx((1 + 0.5) / 2)
    assert glider.interval == two_level_interval([A["glider"], B["glider"]])
    assert base.p_value is None and base.difference is None
    raw = [paired_tasks_p([A["base"], B["base"]], [A[name], B[name]]) for name in ("glider", "oracle")]
    assert [glider.p_value, oracle.p_value] == raw
    assert [glider.p_holm, oracle.p_holm] == holm(raw)
    assert glider.difference == pytest.approx(0.45) and glider.significant
    differences = [[b - a for a, b in zip(task["base"], task["glider"], strict=True)] for task in (A, B)]
    assert glider.difference_interval == two_level_interval(differences)
    assert [value.best for value in (base, glider, oracle)] == [False, True, False]  # a bound is never the best


def test_a_missing_task_is_no_number(filled: Path, write_cell) -> None:
    write_cell("glider", "near", "b", fault="out of memory")
    (base,), (glider,), (oracle,) = (line.values for line in made(filled).lines)
    assert (glider.score, glider.interval, glider.p_value, glider.best) == (None, None, None, False)
    assert glider.missing == (("near", "b"),) and glider.tasks == 1
    assert base.best and oracle.p_holm == oracle.p_value  # one test less to correct for


def test_a_method_has_no_part_in_a_set_it_is_not_for(filled: Path, write_cell) -> None:
    for router in ("base", "glider"):
        write_cell(router, "far", "c", [0, 1])
    methods = ["base", "glider", {"cells": "oracle", "bound": True, "sets": ["near"]}]
    table = made(filled, methods=methods, sets={"near": None, "far": None})
    assert [column.set for column in table.columns] == ["near", "far"]
    near, far = table.lines[2].values
    assert near.score is not None and (far.score, far.missing, lacking(far)) == (None, (), "-")
    assert table.lines[1].values[1].p_holm == table.lines[1].values[1].p_value  # one test in the column
    assert "A dash" in reading(table, True) and "A dash" not in reading(made(filled), True)
    plan = ReportPlan.parse(tables={"table1": methods}, sets={"near": None, "far": None})
    results = Results.read(filled)
    assert lacks(plan, results) == []
    near_tasks, far_tasks = by_task(plan.settled(results, filled), results, {})
    assert (near_tasks.methods, far_tasks.methods) == (("base", "glider", "oracle"), ("base", "glider"))
    assert [line.scores for line in far_tasks.lines] == [(0.5, 0.5)]  # not a third that is missing
    with pytest.raises(ConfigError, match="the set nowhere in table1"):
        made(filled, methods=[{"cells": "base", "sets": ["nowhere"]}, "glider"])


def test_methods_on_other_rows_are_not_compared(filled: Path, write_cell) -> None:
    write_cell("more", "near", "a", [1, 1], guess=0.25, first=8)
    write_cell("more", "near", "b", [1, 1], guess=None, first=8)
    methods = ["base", "glider", {"cells": ["glider", "more"], "name": "twice as many"}]
    _, (glider,), (twice,) = (line.values for line in made(filled, methods=methods).lines)
    assert glider.difference is not None and glider.p_holm == glider.p_value
    assert twice.score is not None and (twice.difference, twice.p_value) == (None, None)


def test_a_bound_does_not_lift_a_task_above_chance(results: Path, write_cell) -> None:
    for router, scores in (("base", [0, 1] * 8), ("oracle", [1] * 16)):
        write_cell(router, "near", "a", scores)
    plan = ReportPlan.parse(tables={"table1": ["base", {"cells": "oracle", "bound": True}]})
    found = Results.read(results)
    assert chance_tasks(plan.settled(found, results), found) == {("near", "a"): "at chance"}


def test_all_runs_of_a_method_tell_a_task_from_chance(results: Path, write_cell) -> None:
    for run in range(4):
        write_cell(f"base{run}", "near", "a", [1, 1, 1, 0], first=4 * run)
    found = Results.read(results)
    tables: dict[str, list] = {"table1": ["base0"]}
    plan = ReportPlan.parse(tables=tables).settled(found, results)
    assert chance_tasks(plan, found) == {("near", "a"): "too few rows"}
    tables["seeds"] = [{"cells": [f"base{run}" for run in range(4)]}]  # 12 of 16 rows
    assert chance_tasks(ReportPlan.parse(tables=tables).settled(found, results), found) == {}
    tables["seeds"] = [{"cells": ["base0", "base9"]}]  # a run of it that is missing
    plan = ReportPlan.parse(tables=tables).settled(found, results)
    assert chance_tasks(plan, found) == {("near", "a"): "too few rows"}


def test_a_set_of_another_table_has_no_part_in_the_list_of_tasks(filled: Path, write_cell) -> None:
    write_cell("other", "far", "c", [0, 1])
    plan = ReportPlan.parse(tables={"table1": ["base"], "mine": {"methods": ["other"], "sets": ["far"]}})
    found = Results.read(filled)
    assert [one.title for one in by_task(plan.settled(found, filled), found, {})] == ["near"]


def test_a_task_that_nobody_ran_is_missing_for_all(filled: Path) -> None:
    table = made(filled, sets={"near": ["a", "b", "c"], "far": None})
    assert all(value.score is None for line in table.lines for value in line.values)
    assert table.lines[0].values[0].missing == (("near", "c"),)


def test_without_a_reference_there_is_no_test(filled: Path, write_cell) -> None:
    assert all(line.values[0].p_value is None for line in made(filled, reference=None).lines)
    write_cell("base", "near", "b", fault="x")
    assert all(line.values[0].p_value is None for line in made(filled).lines)


def test_a_router_without_a_name_is_no_reference(results: Path, write_cell) -> None:
    """It was compared with itself: a traceback."""
    for router in ("", "glider"):
        write_cell(router, "near", "a", [1, 0], folder=f"of {router}")
    assert all(line.values[0].p_value is None for line in made(results, tables={}, reference=None).lines)


def test_other_rows_are_not_paired(filled: Path, write_cell) -> None:
    write_cell("glider", "near", "b", B["glider"], guess=None, data="another file")
    glider = made(filled).lines[1].values[0]
    assert glider.score is not None and glider.p_value is None and glider.difference is None
    write_cell("glider", "near", "b", B["glider"], guess=None, first=2)  # half of its rows are the reference's
    glider = made(filled).lines[1].values[0]
    assert glider.score is not None and glider.p_value is None and glider.difference is None


def test_tasks_at_chance_stay_in_one_average_and_leave_the_other(filled: Path, write_cell) -> None:
    for i, router in enumerate(A):
        write_cell(router, "near", "coin", [i % 2, 1, 0, 1 - i % 2])
    table = made(filled)
    assert [column.title for column in table.columns] == ["near", "near, above chance"]
    assert [len(column.places) for column in table.columns] == [3, 2]
    with_, without = table.lines[1].values
    assert with_.score == pytest.approx((7 / 8 + 0.35 + 0.5) / 3)
    assert without.score == pytest.approx((7 / 8 + 0.35) / 2)


def test_several_runs_are_one_method(filled: Path, write_cell) -> None:
    write_cell("glider-1", "near", "a", [0] * 8, guess=0.25)
    write_cell("glider-1", "near", "b", B["glider"], guess=None)
    value = made(filled, methods=["base", {"cells": ["glider", "glider-1"], "name": "GLIDER"}]).lines[1].values[0]
    assert value.score == pytest.approx((7 / 16 + 0.35) / 2)
    assert value.runs == (pytest.approx((7 / 8 + 0.35) / 2), pytest.approx(0.35 / 2))
