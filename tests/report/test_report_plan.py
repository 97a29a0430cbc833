"""The report file: short and long forms, defaults, and faults told together."""

from pathlib import Path

import pytest
import yaml

from glider.errors import ConfigError
from glider.report.cells import Results
from glider.report.report_plan import Figures, MethodView, ReportPlan, SetView


def write(directory: Path, told: object) -> ReportPlan:
    directory.mkdir(exist_ok=True)
    (directory / "report.yaml").write_text(yaml.safe_dump(told))
    return ReportPlan.read(directory / "report.yaml")


def test_short_forms_are_long_forms(results: Path) -> None:
    plan = write(
        results,
        {
            "sets": {"near": ["a", "b"], "far": None, "bbh": {"title": "BBH"}},
            "tables": {"table1": ["base", {"cells": "glider", "name": "GLIDER"}, {"cells": ["g0", "g1"]}]},
        },
    )
    assert plan.sets == {"near": SetView(tasks=("a", "b")), "far": SetView(), "bbh": SetView(title="BBH")}
    assert [method.label for method in plan.tables["table1"].methods] == ["base", "GLIDER", "g0"]
    assert plan.tables["table1"].methods[2] == MethodView(cells=("g0", "g1"))


def test_without_a_file_everything_is_in_one_table(results: Path, write_cell) -> None:
    for router in ("single:e0", "single:{task}", "glider", "base"):
        write_cell(router, "near", "a", [1])
    (results / "scores.json").write_text("{}")
    plan = ReportPlan().settled(Results.read(results), results)
    assert [method.label for method in plan.tables["table1"].methods] == ["base", "glider", "single:{task}"]
    assert list(plan.sets) == ["near"] and plan.figures == Figures(scores=(Path("scores.json"),))


def test_tasks_that_a_column_names_are_wanted(results: Path, write_cell) -> None:
    write_cell("base", "near", "a", [1])
    write_cell("base", "bbh", "a", [1])
    found = Results.read(results)
    plan = ReportPlan.parse(sets={"near": ["c", "a"], "both": {"of": ["near", "bbh"]}, "none": None})
    assert plan.places("near", found) == [("near", "c"), ("near", "a")]
    assert plan.places("both", found) == [("near", "a"), ("bbh", "a")]
    assert plan.places("none", found) == []


def test_every_fault_is_told(results: Path, write_cell) -> None:
    write_cell("base", "near", "a", [1])
    plan = ReportPlan.parse(
        reference="nobody",
        tables={"t": {"methods": ["base", "base"], "reference": "other", "sets": ["far"]}},
        figures={"scores": ["no.json"]},
    )
    with pytest.raises(ConfigError) as fault:
        plan.settled(Results.read(results), results)
    for part in ("nobody", "base twice", "other", "far", "no.json"):
        assert part in str(fault.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "YAML"),
        ("tabels: {}", "tabels"),
        ("tables: {t: []}", "tables.t.methods"),
        ("[1]", "ReportPlan"),
        ("false", "ReportPlan"),
    ],
)
def test_a_file_of_another_form_is_refused(results: Path, text: str, part: str) -> None:
    results.mkdir()
    (results / "report.yaml").write_text(text)
    with pytest.raises(ConfigError, match=part):
        ReportPlan.read(results / "report.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        ReportPlan.read(results / "other.yaml")
