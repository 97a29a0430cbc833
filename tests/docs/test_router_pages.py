"""The router of docs/adding_a_router.md works as it stands there; docs/routers.md is what the registry says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import glider
from glider.cli.routers import markdown_table, method_rows
from glider.cli.routers import routers as routers_command
from glider.routing.local_scores.base import local_scores

DOCS = Path(__file__).parents[2] / "docs"


def code_of_the_page() -> str:
    match = re.search(r"```python\n(.*?)```", (DOCS / "adding_a_router.md").read_text("utf8"), re.S)
    assert match
    return match[1]


def test_router_of_the_page_runs_and_is_short(make_pool, base_directory: Path, monkeypatch) -> None:
    code = code_of_the_page()
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    for registry in (glider.routers, local_scores):
        list(registry)  # load the known ones before the registry is copied
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    exec(compile(code, "adding_a_router.md", "exec"), {"__name__": "page"})
    pool = make_pool(base_directory)
    model = glider.load(str(base_directory), pool.path, router="loudest")
    (answer,) = model.generate(["hello"], max_new_tokens=3, trace=True)
    assert sum(answer.usage.values()) == pytest.approx(1, abs=1e-3)
    _, trace = model.trace("hello")
    call = trace.calls[0]
    assert call.decision.scores is not None
    assert torch.equal(call.decision.experts[:, 0], call.decision.scores.argmax(dim=-1))
    (answer,) = glider.load(str(base_directory), pool.path, router="glider+loudest").generate(["hello"])
    assert answer.alpha is not None


def test_page_of_routers_is_what_the_registry_says() -> None:
    page = (DOCS / "routers.md").read_text("utf8")
    assert markdown_table(method_rows()) in page, "run `glider routers --markdown` and put the table into the page"


@pytest.mark.slow
def test_router_of_the_page_passes_the_type_checker(tmp_path: Path) -> None:
    (tmp_path / "loudest.py").write_text(code_of_the_page(), "utf8")
    settings = {"include": [str(tmp_path)], "typeCheckingMode": "standard", "pythonVersion": "3.10"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), "utf8")
    command = [sys.executable, "-m", "basedpyright", "--project", str(tmp_path), "--pythonpath", sys.executable]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "0 errors, 0 warnings" in result.stdout, result.stdout
    assert result.returncode == 0, result.stderr


def test_the_command_tells_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal had names and papers alone, where the pages promise the settings."""
    routers_command()
    text = " ".join(capsys.readouterr().out.split())
    for row in method_rows():
        assert row["name"] in text
        for setting in row["settings"]:
            assert (setting in text) or (setting == "select" and "top_k=" in text), setting
    defaults = {row["name"]: row["defaults"] for row in method_rows()}
    assert defaults["glider"]["top_k"] == 2 and defaults["arrow"]["temperature"] == 1.0
    assert "normalise=softmax" in text and "capacity=2.0" in text


def test_the_command_lists_the_global_signals_with_their_papers(capsys: pytest.CaptureFixture[str]) -> None:
    """They were listed nowhere, and two had no paper."""
    papers = {"ariadne": "arXiv:2606.19079", "instruction": "arXiv:2410.07172", "lorauter": "arXiv:2601.21795"}
    routers_command(as_json=True)
    listed = json.loads(capsys.readouterr().out)
    assert listed == method_rows()
    routers_command(as_json=True, signals=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: rows[name]["paper"] for name in papers} == papers
    assert {"examples", "ensemble", "hidden"} <= rows.keys()
    assert all(row.keys() == listed[0].keys() and row["summary"] for row in rows.values())
    routers_command()
    _, table = capsys.readouterr().out.split("global signal ")
    assert all(name in table for name in (*rows, *papers.values()))


def test_the_page_names_every_former_name_of_a_router() -> None:
    list(glider.routers)  # aliases are known once the methods are loaded
    page = (DOCS / "routers.md").read_text("utf8")
    assert "tasklevel" in glider.routers._aliases
    assert all(f"`{former}`" in page for former in glider.routers._aliases)
