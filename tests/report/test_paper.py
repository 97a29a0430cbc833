"""One command from results to report: real cells, every format, the same bytes again."""

import json
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from glider.errors import ConfigError, DataError, ExpertError
from glider.evaluation.run_plan import RunPlan
from glider.evaluation.run_table import table
from glider.evaluation.runs import Run
from glider.experts.card import EmbedderIdentity
from glider.experts.pool import Pool
from glider.experts.trust import UNSIGNED
from glider.inference.spec import load
from glider.report.global_scores import pool_scores, task_files
from glider.report.paper import write_report
from glider.report.routing_map import routing_map

from ..commands import CommandResult

ROWS = [
    {"input": f"is {i} even{'?' * i}", "output": ("yes", "no")[i % 2], "choices": ["yes", "no"], "split": "test"}
    for i in range(6)
]


@pytest.fixture
def evaluated(evaluation: Path, tmp_path: Path) -> Path:
    """A copy of the evaluation's results; its plan lies beside."""
    shutil.copytree(evaluation, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out"


@pytest.fixture(scope="module")
def evaluation(
    llama_directory: Path, made_pools, embedder_identity: EmbedderIdentity, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A real run of two routers and an oracle over two sets, with both figures' JSON."""
    place = tmp_path_factory.mktemp("evaluation")
    pool = Pool.open(made_pools(llama_directory, 3, 0, {"profile": True, "embedder": embedder_identity}), UNSIGNED)
    for where in ("near", "far"):
        (place / where).mkdir()
        for task in ("e0", "odd") if where == "near" else ("strange",):
            (place / where / f"{task}.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    told = {
        "pool": str(pool.path),
        "base": str(llama_directory),
        "routers": [
            "base",
            {"router": "glider", "settings": {"global_": "examples", "abstain": False}},
            "oracle",
            "single:{task}",
        ],
        "sets": {where: {"tasks": [f"{where}/*.jsonl"]} for where in ("near", "far")},
    }
    (place / "run.yaml").write_text(yaml.safe_dump(told))
    run = Run(RunPlan.read(place / "run.yaml"), place, place / "out")
    list(run.go())
    files = task_files([str(place / "near" / "*.jsonl")])
    scores = pool_scores(pool, "examples", files)
    (place / "out" / "scores.json").write_text(scores.model_dump_json())
    model = load(str(llama_directory), pool.path, global_="examples", abstain=False)
    routing_map(model, "glider", files, rows=2).write(place / "out" / "routing.json")
    return place


class References(HTMLParser):
    """Everything on a page that could be fetched, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in {"src", "srcset", "href", "data", "action"}]
        if tag not in {"meta", "img", "source", "input"}:
            self.open.append(tag)
        assert tag not in {"script", "link", "iframe", "object"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report_of(directory: Path, out: Path, plan: Any = None) -> dict[str, bytes]:
    """The files of a report."""
    if plan is not None:
        (directory / "report.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    write_report(directory, out)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_a_real_runs_numbers_are_those_of_its_own_table(evaluated: Path, tmp_path: Path) -> None:
    plan = {"reference": "base", "tables": {"table1": ["base", "glider", {"cells": "oracle", "bound": True}]}}
    files = report_of(evaluated, tmp_path / "report", plan)
    told = json.loads(files["report.json"])
    run = Run(RunPlan.read(tmp_path / "run.yaml"), tmp_path, evaluated)
    entries = {(entry.router, entry.set): entry for entry in table(run)}
    columns = [column["set"] for column in told["tables"][0]["columns"]]
    whole = [i for i, column in enumerate(told["tables"][0]["columns"]) if not column["without_chance"]]
    for line in told["tables"][0]["lines"]:
        for i in whole:
            entry, value = entries[line["method"], columns[i]], line["values"][i]
            assert value["score"] == pytest.approx(entry.score)
            assert value["interval"] == pytest.approx(entry.tasks_interval)
            assert value["p_value"] == entry.p_value


def test_the_same_results_are_the_same_bytes(evaluated: Path, tmp_path: Path) -> None:
    first, second = report_of(evaluated, tmp_path / "a"), report_of(evaluated, tmp_path / "b")
    assert first == second
    assert set(first) == {
        *("report.md", "report.tex", "report.html", "report.json"),
        *("routing.png", "routing-dark.png", "scores.png", "scores-dark.png"),
    }
    assert first == report_of(evaluated, evaluated / "report")  # a report within the results is not among them
    assert first == report_of(evaluated, evaluated / "report")


def test_the_page_needs_nothing_but_itself(evaluated: Path, tmp_path: Path) -> None:
    page = report_of(evaluated, tmp_path / "report")["report.html"].decode()
    references = References()
    references.feed(page)
    assert not references.open
    assert len(references.found) == 4 and all(found.startswith("data:image/png;base64,") for found in references.found)
    assert "http" not in page and "url(" not in page and "@import" not in page
    assert page.count("prefers-color-scheme: dark") == 3  # the colours, and a palette of each picture
    for text in ("Table 1: Methods", "Figure 1: Where tokens go", "Figure 2: How well", "single:{task}"):
        assert text in references.text


@pytest.mark.parametrize("name", ["report.yaml", "routing.json", "scores.json"])
@pytest.mark.parametrize("kind", ["directory", "pipe", "link to nothing"])
def test_what_is_no_file_is_not_taken_for_none(results: Path, write_cell, tmp_path: Path, name: str, kind: str) -> None:
    """The tables were those of no plan."""
    write_cell("base", "near", "a", [1])
    place = results / name
    {"directory": place.mkdir, "pipe": lambda: os.mkfifo(place), "link to nothing": lambda: place.symlink_to("x")}[
        kind
    ]()
    with pytest.raises((ConfigError, DataError), match=name.replace(".", r"\.")):
        write_report(results, tmp_path / "report")


def test_pictures_have_names_that_every_form_can_hold(evaluated: Path, tmp_path: Path) -> None:
    (evaluated / "50 % (a_b).json").write_bytes((evaluated / "scores.json").read_bytes())
    files = report_of(evaluated, tmp_path / "report", {"figures": {"scores": ["50 % (a_b).json"]}})
    assert {"50-a_b-.png", "50-a_b--dark.png"} < set(files)
    assert b"](50-a_b-.png)" in files["report.md"] and b"{50-a_b-.png}" in files["report.tex"]
    (evaluated / "scores-dark.json").write_bytes((evaluated / "scores.json").read_bytes())
    with pytest.raises(ConfigError, match="one name twice"):
        report_of(evaluated, tmp_path / "report", {"figures": {"scores": ["scores.json", "scores-dark.json"]}})


@pytest.fixture
def partial(results: Path, write_cell) -> Path:
    """A task without a result among finished ones, and a method nobody ran."""
    for where, task, scores in (("near", "a_b", [1, 0]), ("near", "b", [1, 1]), ("far", "c", [0.25, 0.5])):
        write_cell("base", where, task, scores, guess=None)
        write_cell("glider", where, task, scores[::-1], guess=None)
    write_cell("glider", "near", "b", fault="50 % of <it> & \\more")
    tables = {
        "table1": ["base", "glider", {"cells": "arrow", "note": "x_y"}],
        "table2": {"methods": [{"cells": "glider", "name": "alpha $10"}]},
    }
    (results / "report.yaml").write_text(yaml.safe_dump({"title": "A & B", "tables": tables}))
    return results


def test_what_is_missing_is_said_and_never_a_number(partial: Path, tmp_path: Path) -> None:
    files = report_of(partial, tmp_path / "report")
    markdown, latex, page = (files[f"report.{form}"].decode() for form in ("md", "tex", "html"))
    (line,) = [line for line in markdown.splitlines() if line.startswith("| glider |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1].startswith("**37.5** (")
    assert "missing (1 of 2 tasks)" in cells
    assert "| arrow | missing | missing |" in markdown
    assert "- glider: near/b (glider failed: 50 % of \\<it\\> \\& \\\\more)" in markdown
    assert "- arrow: " in markdown and "arrow has not been run" in markdown
    assert "\\textit{missing (1 of 2 tasks)}" in latex and "alpha \\$10 & " in latex
    assert "50 % of &lt;it&gt; &amp; \\more" in page and '<td class="lack" title="near/b">' in page
    assert "<title>A &amp; B</title>" in page
    told = json.loads(files["report.json"])
    assert [(lack["method"], lack["place"]) for lack in told["lacks"]] == [
        *(("arrow", place) for place in (["far", "c"], ["near", "a_b"])),
        *((method, ["near", "b"]) for method in ("glider", "arrow", "alpha $10")),
    ]
    assert all(value["score"] is None for value in told["tables"][0]["lines"][2]["values"])


def test_latex_is_balanced(partial: Path, tmp_path: Path) -> None:
    latex = report_of(partial, tmp_path / "report")["report.tex"].decode()
    plain = re.sub(r"\\[{}\\]", "", latex)
    assert plain.count("{") == plain.count("}")
    opened, closed = re.findall(r"\\begin\{(\w+)\}", latex), re.findall(r"\\end\{(\w+)\}", latex)
    assert sorted(opened) == sorted(closed) and opened.count("table") == 2
    for rows in re.findall(r"\\midrule\n(.*?)\\bottomrule", latex, re.S):
        assert all(row.endswith(r"\\") and row.count(" & ") == 2 for row in rows.strip().splitlines())


def test_the_command_tells_what_it_made(partial: Path, glider: Callable[..., CommandResult]) -> None:
    told, listed = glider("report", "paper", partial), glider("report", "paper", partial, "--json")
    assert told.code == listed.code == 0
    assert "2 tables and 0 figures in report.html, .md, .tex; missing results: 5" in told.out
    assert json.loads(listed.out)["title"] == "A & B"
    assert (partial / "report" / "report.html").is_file()


@pytest.mark.parametrize(("words", "part"), [(["nowhere"], "glider evaluate"), (["--plan", "no.yaml"], "no.yaml")])
def test_mistakes_are_one_line(
    partial: Path, words: list[str], part: str, glider: Callable[..., CommandResult]
) -> None:
    ended = glider("report", "paper", *(words if words[0] == "nowhere" else [partial, *words]))
    assert ended.code == 2 and part in ended.err and ended.err.strip().count("\n") == 0


def test_a_figures_file_of_another_kind_is_refused(partial: Path, tmp_path: Path) -> None:
    (partial / "scores.json").write_text('{"format": 1}')
    with pytest.raises(ConfigError, match=r"scores\.json"):
        write_report(partial, tmp_path / "report")


def test_a_figures_file_is_bounded_as_any_json(partial: Path, tmp_path: Path) -> None:
    """It was parsed by another reader, which took the last of two names, and five times the file in memory."""
    (tmp_path / "numbers.json").write_text('{"format": 1, "format": 1}')
    with pytest.raises(ConfigError, match=r"the name 'format' twice"):
        report_of(partial, tmp_path / "report", {"figures": {"scores": [str(tmp_path / "numbers.json")]}})


def test_a_link_in_place_of_the_report_is_not_followed(results: Path, write_cell, tmp_path: Path) -> None:
    for router in ("base", "glider"):
        write_cell(router, "near", "a", [1, 0, 1])
    (tmp_path / "outside").mkdir()
    (results / "report").symlink_to(tmp_path / "outside")
    with pytest.raises(ExpertError, match=r"results/report.*a link"):
        write_report(results, results / "report")
    (results / "report").unlink()
    (results / "report").mkdir()
    (results / "report" / "report.md").symlink_to(tmp_path / "outside" / "text.md")
    write_report(results, results / "report")
    assert not list((tmp_path / "outside").iterdir()) and not (results / "report" / "report.md").is_symlink()
    (tmp_path / "place").symlink_to(tmp_path / "outside")  # its user's own
    write_report(results, tmp_path / "place")
    assert (tmp_path / "outside" / "report.html").is_file()
