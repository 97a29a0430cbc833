"""The router of docs/adding_a_router.md works as it stands there; docs/routers.md is what the registry says."""

import re
from pathlib import Path

import pytest
import torch

import glider
from glider.cli.routers import markdown_table, method_rows

DOCS = Path(__file__).parents[2] / "docs"


def test_router_of_the_page_runs_and_is_short(make_pool, base_directory: Path, monkeypatch) -> None:
    page = (DOCS / "adding_a_router.md").read_text("utf8")
    match = re.search(r"```python\n(.*?)```", page, re.S)
    assert match
    lines = [line for line in match[1].splitlines() if line.strip()]
    assert len(lines) < 30, len(lines)
    list(glider.routers)  # load the known ones before the registry is copied
    monkeypatch.setattr(glider.routers, "_entries", dict(glider.routers._entries))
    exec(compile(match[1], "adding_a_router.md", "exec"), {"__name__": "page"})
    pool = make_pool(base_directory)
    model = glider.load(str(base_directory), pool.path, router="loudest")
    (answer,) = model.generate(["hello"], max_new_tokens=3, trace=True)
    assert sum(answer.usage.values()) == pytest.approx(1, abs=1e-3)
    _, trace = model.trace("hello")
    call = trace.calls[0]
    assert call.decision.scores is not None
    assert torch.equal(call.decision.experts[:, 0], call.decision.scores.argmax(dim=-1))


def test_page_of_routers_is_what_the_registry_says() -> None:
    page = (DOCS / "routers.md").read_text("utf8")
    assert markdown_table(method_rows()) in page, "run `glider routers --markdown` and put the table into the page"
