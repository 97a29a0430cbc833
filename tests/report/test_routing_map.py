"""Figure 2's numbers are the traces' means, and survive the way to disk and back."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.errors import ConfigError, RouterError
from glider.inference.spec import load
from glider.report.global_scores import task_files
from glider.report.paper import _drawing
from glider.report.routing_map import RoutingMap, routing_map

from ..commands import CommandResult


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two tasks, one of them an expert's own."""
    (tmp_path / "near").mkdir()
    for name in ("e1", "other"):
        told = [{"input": f"{name} says {'so ' * i}", "output": "x", "split": "test"} for i in range(3)]
        (tmp_path / "near" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, told)))
    return tmp_path / "near"


def test_weights_are_the_means_over_prompts(make_pool, base_directory: Path, rows: Path, tmp_path: Path) -> None:
    model = load(str(base_directory), make_pool(base_directory).path)
    found = routing_map(model, "glider", task_files([str(rows / "*.jsonl")]), rows=3)
    assert [(task.task, task.group, task.own, task.rows) for task in found.tasks] == [
        ("e1", "near", "e1", 3),
        ("other", "near", None, 3),
    ]
    traces = [model.trace(f"other says {'so ' * i}")[1].heatmap() for i in range(3)]
    assert torch.allclose(torch.tensor(found.tasks[1].weights), torch.stack(traces).mean(dim=0), atol=6e-4)
    assert len(found.sites) == len(found.tasks[0].weights)
    found.write(tmp_path / "routing.json")
    assert RoutingMap.model_validate_json((tmp_path / "routing.json").read_text()) == found
    first, second = found.draw(tmp_path / "a.png"), found.draw(tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()


def test_a_router_without_experts_is_refused(make_pool, llama_directory: Path, rows: Path) -> None:
    model = load(str(llama_directory), make_pool(llama_directory).path, router="base")
    with pytest.raises(RouterError, match="base"):
        routing_map(model, "base", task_files([str(rows / "e1.jsonl")]))


def test_too_many_panels_are_refused(tmp_path: Path) -> None:
    task = {"task": "t", "group": "g", "rows": 1, "own": None, "weights": [[1.0]]}
    told = RoutingMap.parse(router="glider", experts=["e"], sites=["s"], tasks=[task] * 25)
    with pytest.raises(ConfigError, match="25"):
        told.draw(tmp_path / "a.png")


def test_the_command_writes_numbers_or_a_picture(
    make_pool, llama_directory: Path, rows: Path, tmp_path: Path, glider: Callable[..., CommandResult]
) -> None:
    pool = make_pool(llama_directory).path
    for name in ("routing.json", "routing.png"):
        words = ["--pool", pool, "--base", llama_directory, "--data", rows / "*.jsonl", "--out", tmp_path / name]
        ended = glider("report", "routing", *words)
        assert ended.code == 0 and "2 tasks x 14 sites x 3 experts, glider" in ended.out
    assert RoutingMap.model_validate_json((tmp_path / "routing.json").read_text()).router == "glider"
    assert (tmp_path / "routing.png").read_bytes().startswith(b"\x89PNG")


SPREAD = {"mean": 0.1, "low": 0.0, "high": 0.2}
NUMBERS: dict[str, Any] = {
    "routing": {
        "format": 1,
        "router": "r",
        "experts": ["a", "b"],
        "sites": ["s", "u"],
        "tasks": [{"task": "t", "group": "g", "rows": 2, "own": "a", "weights": [[0.1, 0.2], [0.3, 0.1]]}],
    },
    "scores": {
        "format": 1,
        "signal": "examples",
        "p": 0.5,
        "experts": ["a"],
        "tasks": [
            {
                **{"task": "t", "group": "g", "queries": 3, "own": "a", "above": 0.5, "best": SPREAD},
                "scores": {"a": SPREAD},
            }
        ],
    },
}


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("routing", ("tasks",), []),
        ("routing", ("experts",), []),
        ("routing", ("sites",), ["s"]),
        ("routing", ("tasks", 0, "weights"), [[0.1], [0.2]]),
        ("routing", ("tasks", 0, "weights", 0, 1), float("nan")),
        ("routing", ("tasks", 0, "weights", 0, 1), 1e300),
        ("routing", ("tasks", 0, "own"), "c"),
        ("scores", ("tasks", 0, "own"), "c"),
        ("scores", ("tasks", 0, "scores"), {}),
        ("scores", ("experts",), ["a", "b"]),
    ],
)
def test_forged_numbers_of_a_figure_are_refused(tmp_path: Path, kind: str, place: tuple, value: object) -> None:
    """They were tracebacks of whatever drew them."""
    told = part = copy.deepcopy(NUMBERS[kind])
    (tmp_path / "good.json").write_text(json.dumps(told))
    _drawing(kind, tmp_path / "good.json")
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    (tmp_path / "forged.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"forged\.json"):
        _drawing(kind, tmp_path / "forged.json")
