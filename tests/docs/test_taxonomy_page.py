"""docs/taxonomy.md and the registry are of one mind: every spec can be made, every router is on the page."""

import re
from pathlib import Path

import pytest
import torch

from glider.contribute.fewshot_fits import fit_of
from glider.routing.base import Site, routers
from glider.routing.linear import LinearRouter
from glider.routing.signals.base import signals
from glider.routing.specification import parsed, router_from
from glider.routing.static import Static

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
    router_from(name, {} if fit_of(name, settings) is not None else settings)  # those of a fit are not the router's
    if (signal := settings.get("global")) is not None:
        signals.create(signal)


def test_every_router_stands_on_the_page() -> None:
    here = {re.split(r"[(:]", text)[0] for text in specs(PAGE)}
    assert here == {entry.name for entry in routers if entry.make.__module__.startswith("glider.")}


def test_every_axis_has_its_values() -> None:
    rows = section("The axes")
    assert [axis for axis, _, _ in rows if axis] == AXES
    assert all(value and expressed for _, value, expressed in rows)


# Of the list of papers that the survey keeps: method, routing data set, input and depth granularity.
SURVEY = """
AdapterFusion target step module; AdapterSoup none task model; Airoboros_and_LlamaIndex none example model;
Arrow none step module; Branch-Train-MiX expert step module; CALM multiple task N/A; Co-LLM target step model;
Dynamic_Adapter_Merging none example model; LoraHub target task model; LoraRetriever expert example model;
LoRA-Flow target step module; MeteoRA expert step module; MixDA target example module; MoLE target step module;
Mo'LoRA none example model; PEMT target task module; PHATGOOSE none step module; PWE_MoE expert N/A module;
Retrieval_of_Experts none task model; RouteLLM multiple example model; Routoo multiple example model;
Token-level_adaptation none step model; Twin-Merging target example model; WEMoE target example module;
What_the_Weight? multiple example module; Zooter general example model
"""


def test_each_of_the_surveys_methods_has_a_spec_or_a_reason() -> None:
    rows = section("The survey's methods")
    assert [int(number) for number, *_ in rows] == list(range(1, 27))
    listed = [one.split() for one in SURVEY.split(";")]
    for row, (name, *values) in zip(rows, listed, strict=True):
        _, method, *theirs, spec, remark = row
        title, _, reference = method.rpartition(" (")
        assert title == name.replace("_", " ") and theirs == values
        assert re.fullmatch(r"\d{4}\.\d{5}\)|(software|weblog), \d{4}\)", reference), method
        assert len(specs(spec)) == 1 or (spec == "none" and remark), method
    assert sum(row[2] == "target" for row in rows) == 9  # as the survey counts them


def test_what_decides_in_the_native_kernel_is_what_the_page_says() -> None:
    told = PAGE.split("Scores and selection run whole")[1].split("(top-k")[0]
    tensors = dict.fromkeys(("gates", "directions", "rows"), torch.zeros(2, 3))
    site, native = Site("site", torch.zeros(2, dtype=torch.bool), tensors), set()
    for entry in routers:
        if isinstance(entry.make, type) and issubclass(entry.make, Static):
            continue
        router = routers.create(entry.name)
        if isinstance(router, LinearRouter) and router.linear(site) is not None:
            native.add(entry.name)
    assert set(specs(told)) == native
