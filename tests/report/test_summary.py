"""The picture above a table shows its numbers where they are."""

import re

import pytest

from glider.report.contents import Report
from glider.report.rendering import render
from glider.report.report_plan import MethodView
from glider.report.summary import Scale, scale
from glider.report.tables import Column, Line, Table, Value

BEST = Value(
    1, score=0.62, interval=(0.55, 0.71), difference=0.2, difference_interval=(0.1, 0.3), p_holm=0.01, best=True
)
NEXT = Value(1, score=0.42, interval=(0.31, 0.5))
BOUND = Value(1, score=0.5, interval=(0.5, 0.5))
NONE = Value(0, missing=(("near", "a"),))


def table(*rows: tuple[Value, ...]) -> Table:
    """A method a row, the second the reference, the third a bound."""
    columns = tuple(Column("near", f"column {i}", (("near", "a"),)) for i in range(len(rows[0])))
    methods = (MethodView(cells=(f"method{i}",), bound=i == 2) for i in range(len(rows)))
    lines = tuple(Line(method, values) for method, values in zip(methods, rows, strict=True))
    return Table("table1", "Methods", "", "method1", columns, lines)


def page_of(*tables: Table) -> str:
    return render(Report("title", "", tables, {}, (), (), (), {}), "html")


@pytest.mark.parametrize(
    ("values", "low", "high", "ticks"),
    [
        ((BEST, NEXT), 3, 8, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        ((BEST, Value(1, score=0.0, interval=(0.0, 0.0))), 0, 8, [0.0, 0.2, 0.4, 0.6, 0.8]),
        ((BEST, Value(1, score=0.1, interval=(0.1, 1.0))), 1, 10, [0.2, 0.4, 0.6, 0.8, 1.0]),
        ((BOUND, NONE), 5, 6, [0.5, 0.6]),
        ((Value(1, score=1.0, interval=(1.0, 1.0)),), 10, 11, [1.0, 1.1]),
    ],
)
def test_the_scale_holds_every_interval(values: tuple[Value, ...], low: int, high: int, ticks: list[float]) -> None:
    found = scale(table(values))
    assert found == Scale(low, high) and found.ticks == ticks
    assert (found.at(low / 10), found.at(high / 10)) == ("4.00%", "96.00%")
    assert found.at((low + high) / 20) == "50.00%"


def test_every_number_is_a_point_with_its_interval() -> None:
    shown = table((BEST, NONE), (NEXT, BEST), (BOUND, NEXT))
    at = Scale(3, 8).at
    page = page_of(shown)
    panels = re.findall(r"<svg.*?</svg>", page, re.S)
    points = [
        re.findall(r'<g class="(\w*)"><title>(\w+).*?x1="(.*?)" x2="(.*?)" y1="(\d+)".*?cx="(.*?)" cy="(\d+)"', panel)
        for panel in panels
    ]
    assert points == [
        [
            ("best", "method0", at(0.55), at(0.71), "11", at(0.62), "11"),
            ("", "method1", at(0.31), at(0.5), "33", at(0.42), "33"),
            ("bound", "method2", at(0.5), at(0.5), "55", at(0.5), "55"),
        ],
        [
            ("best", "method1", at(0.55), at(0.71), "33", at(0.62), "33"),
            ("bound", "method2", at(0.31), at(0.5), "55", at(0.42), "55"),
        ],
    ]
    lines = [re.findall(r'class="reference" x1="(.*?)"', panel) for panel in panels]
    assert lines == [[at(0.42)], [at(0.62)]]
    assert "<title>method0: 62.0 (55.0 to 71.0, +20.0 [+10.0 to +30.0], p = 0.010)</title>" in page
    assert page.index("<svg") < page.index("<table")


def test_a_table_without_numbers_has_no_picture() -> None:
    assert scale(table((NONE, NONE))) is None
    assert "<svg" not in page_of(table((NONE, NONE)))


def test_the_switch_hides_what_is_small_in_the_columns_of_numbers() -> None:
    page = page_of(table((BEST, NEXT)))
    assert re.search(
        r'<body>\s*<input type="checkbox" id="intervals" checked><label for="intervals">.*</label>\s*<main>', page
    )
    assert "#intervals:not(:checked) ~ main td + td small { display: none; }" in page
    (row,) = re.findall(r"<tr>(<td>method0.*?)</tr>", page)
    first, *numbers = row.split("</td>")
    assert "<small>" not in first and [cell.count("<small>") for cell in numbers] == [3, 1, 0]
    assert "position: sticky" in page and "<small>+20.0 [+10.0\u00a0to\u00a0+30.0]</small>" in page
