"""Budgets of batches: grown while it pays, kept with the device they were measured on, and no part of a result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.errors import ConfigError
from glider.evaluation import cells, task_rows
from glider.evaluation.budgets import BATCH_FILE, USUAL, Budget, Probe, find_budget, read_batches, timed, tokens_of
from glider.evaluation.run_plan import RunPlan
from glider.evaluation.runs import Run
from glider.experts.pool import Pool

ROWS = [{"input": f"is {'x' * (i % 7)} {i} even?", "output": "yes", "choices": ["yes", "no"]} for i in range(120)]


def device(speeds: dict[int, float | BaseException], rows: int = 1 << 30) -> Callable[[Budget], Probe]:
    """A device that computes so many tokens a second in batches of a budget, or fails."""

    def probe(budget: Budget) -> Probe:
        speed = speeds[budget.tokens]
        if isinstance(speed, BaseException):
            raise speed
        return Probe(1000, 1000 / speed, all_rows=budget.tokens >= rows)

    return probe


def test_a_budget_grows_as_long_as_time_pays() -> None:
    found = find_budget(device({768: 100, 1536: 190, 3072: 300, 6144: 305}))
    assert found.budget == Budget(3072)
    assert found.content == {
        "tokens": 3072,
        "tokens_per_second": {"768": 100.0, "1536": 190.0, "3072": 300.0, "6144": 305.0},
    }
    assert find_budget(device({768: 100, 1536: 60})).budget == USUAL
    assert find_budget(device({768: 100, 1536: 190}, rows=1536)).budget == Budget(1536)  # a batch holds all rows


@pytest.mark.slow
@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("out"), MemoryError(), RuntimeError("can't allocate memory")])
def test_memory_ends_the_growth_with_half_to_spare(fault: BaseException) -> None:
    found = find_budget(device({768: 100, 1536: 190, 3072: 300, 6144: fault}))
    assert found.budget == Budget(1536) and found.speeds[6144] is None
    assert find_budget(device({768: fault, 384: fault, 192: 50})).budget == Budget(192)
    everywhere = dict.fromkeys((768, 384, 192, 96), fault)
    with pytest.raises(type(fault)):
        find_budget(device(everywhere))


def test_another_fault_is_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        find_budget(device({768: 100, 1536: RuntimeError("shapes")}))


def test_one_dial_sets_all_that_a_batch_holds() -> None:
    assert (USUAL.tokens, USUAL.choice_tokens, USUAL.rows) == (768, 512, 8)
    assert (Budget(96).choice_tokens, Budget(96).rows) == (64, 1)
    assert tokens_of("auto") == "auto" and tokens_of("4096") == 4096
    for text in ("95", "many", "-3", str(1 << 30)):
        with pytest.raises(ConfigError, match="--batch-tokens auto"):
            tokens_of(text)
    with pytest.raises(ConfigError, match="at least 96"):
        RunPlan.parse(routers=["base"], sets={"s": {"tasks": ["x"]}}, batch_tokens=3)
    runs: list[int] = []
    assert timed(lambda: runs.append(1) or 7)[0] == 7 and len(runs) == 2


@pytest.fixture
def run_with(make_pool: Any, llama_directory: Path, tmp_path: Path) -> Callable[..., Run]:
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf8")
    pool: Pool = make_pool(llama_directory)

    def make(**changes: Any) -> Run:
        told = {"pool": str(pool.path), "base": str(llama_directory), "routers": ["base"], "split": None}
        plan = RunPlan.parse(**told, sets={"s": {"tasks": ["task.jsonl"]}}, **changes)
        return Run(plan, tmp_path, tmp_path / "out")

    return make


def result_of(run: Run) -> dict[str, Any]:
    assert [result.status for result in run.go()] == ["done"]
    (cell,) = run.cells.values()
    result = cell.read()
    assert result is not None
    return result


def test_a_measured_budget_is_kept_beside_the_results_and_taken_again(
    run_with: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes: list[int] = []
    rank = task_rows._rank

    def counted(model: Any, rows: Any, queries: Any) -> Any:
        sizes.append(len(rows))
        return rank(model, rows, queries)

    monkeypatch.setattr(task_rows, "_rank", counted)
    first = result_of(run_with())
    usual = max(sizes)
    sizes.clear()
    found = result_of_anew(run_with(batch_tokens="auto"))
    device_of = found["batch"]["device"]
    kept = read_batches(tmp_path / "out" / "base" / "s")
    assert kept[device_of]["choices"]["tokens"] == found["batch"]["tokens"] >= 768
    assert set(found["batch"]["tokens_per_second"]) == set(kept[device_of]["choices"]["tokens_per_second"])
    assert max(sizes) >= usual
    scores = [[row["score"] for row in result["results"]] for result in (first, found)]
    assert scores[0] == scores[1] and first["key"] == found["key"]

    def unmeasured(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(cells, "measured_budget", unmeasured)
    again = result_of_anew(run_with(batch_tokens="auto"))
    assert again["batch"] == {name: found["batch"][name] for name in ("device", "kind", "tokens")}


def result_of_anew(run: Run) -> dict[str, Any]:
    """The result of a run whose cell was there already."""
    (cell,) = run.cells.values()
    cell.path.unlink()
    return result_of(run)


def test_a_number_is_taken_as_it_is(run_with: Callable[..., Run], tmp_path: Path) -> None:
    result = result_of(run_with(batch_tokens=200))
    assert "batch" not in result and not (tmp_path / "out" / "base" / "s" / BATCH_FILE).exists()


@pytest.mark.parametrize("content", ["[]", "{", '{"cpu": {"choices": {"tokens": "all"}}}', '{"cpu": {"choices": 3}}'])
def test_a_file_of_another_form_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / BATCH_FILE).write_text(content, "utf8")
    with pytest.raises(ConfigError, match=r"measured batches in .*Remove it"):
        read_batches(tmp_path)


def test_vllm_batches_by_itself(run_with: Callable[..., Run]) -> None:
    with pytest.raises(ConfigError, match="vLLM batches by itself"):
        run_with(batch_tokens="auto", engine="vllm")
