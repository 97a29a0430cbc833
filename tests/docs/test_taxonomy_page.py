"""docs/taxonomy.md and the registry are of one mind: every spec can be made, every router is on the page."""

import re
from pathlib import Path

import pytest

from glider.routing.base import routers
from glider.routing.completed import fitted
from glider.routing.signals.base import signals
from glider.routing.specification import parsed, router_from

PAGE = (Path(__file__).parents[2] / "docs" / "taxonomy.md").read_text("utf8")
AXES = ["expert training", "expert data", "routing data set", "input granularity", "depth granularity"]
AXES += ["selection", "aggregation", "generalisation", "user data"]


def section(title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    text = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def specs(text: str) -> list[str]:
    """What stands in backticks and names a router."""
    known = {entry.name for entry in routers}
    return [one for one in re.findall(r"`([^`]+)`", text) if re.split(r"[(:]", one)[0] in known]


@pytest.mark.parametrize("text", sorted({*specs(PAGE)}))
def test_every_spec_of_the_page_can_be_made(text: str) -> None:
    name, settings = parsed(text)
    router_from(name, {} if fitted(name, settings) is not None else settings)  # those of a fit are not the router's
    if (signal := settings.get("global")) is not None:
        signals.create(signal)


def test_every_router_stands_on_the_page() -> None:
    here = {re.split(r"[(:]", text)[0] for text in specs(PAGE)}
    assert here == {entry.name for entry in routers if entry.make.__module__.startswith("glider.")}


def test_every_axis_has_its_values() -> None:
    rows = section("The axes")
    assert [axis for axis, _, _ in rows if axis] == AXES
    assert all(value and expressed for _, value, expressed in rows)


def test_each_of_the_surveys_methods_has_a_spec_or_a_reason() -> None:
    rows = section("The survey's methods")
    assert [int(number) for number, *_ in rows] == list(range(1, 27))
    for _, method, spec, remark in rows:
        assert re.search(r"\(\d{4}\.\d{5}\)", method), method
        assert len(specs(spec)) == 1 or (spec == "none" and remark), method
    assert len({method for _, method, *_ in rows}) == 26
