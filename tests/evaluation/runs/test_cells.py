"""Cells of an evaluation: what they hold, how a run goes on where it was, and what is a fault and no number."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glider.errors import BaseModelError, ConfigError, DataError, EndpointError
from glider.evaluation import metrics
from glider.evaluation.run_plan import RunPlan
from glider.evaluation.run_table import table
from glider.evaluation.runs import Run
from glider.experts.pool import Pool
from glider.inference.spec import load
from glider.jobs.local import LocalExecutor
from glider.jobs.run import LOCK_FILE
from glider.routing.select import TopK

from ...commands import CommandResult
from .run_files import EVEN, SAY, statuses, told, write


def test_a_cell_holds_what_the_library_says(make_run, pool: Pool, base_directory: Path) -> None:
    run = make_run([{"router": "glider", "settings": {"p": 0.5, "top_k": 1}, "name": "mine"}], seed=3)
    assert statuses(run) == ["done"] * 3
    cell = told(run, "mine", "near", "even")
    model = load(str(base_directory), pool.path, p=0.5, select=TopK(1))
    for row, result in zip(EVEN, cell["results"], strict=True):
        scored = model.score(row["input"], row["choices"])
        assert result["choices"] == pytest.approx([score.normalised for score in scored], abs=2e-3)
        best = max(scored, key=lambda score: score.normalised).choice
        assert (result["id"], result["prediction"], result["gold"]) == (row["id"], best, [row["output"]])
        assert result["score"] == (best == row["output"])
        assert result["expert"] in pool.names and result["alpha"] in (3.0, 103.0)
    assert cell["score"] == sum(result["score"] for result in cell["results"]) / 8
    assert cell["metric"] == "accuracy" and cell["rows"] == cell["available"] == 8
    assert cell["guess"] == 0.5
    assert all(result["seconds"] > 0 for result in cell["results"])
    assert set(cell["hashes"]) == {"pool", "base", "data"} and "torch" in cell["versions"]
    said = told(run, "mine", "far", "say")
    assert said["guess"] is None and said["metric"] == "rougeL"
    assert len(said["results"]) == 3 and said["results"][0]["choices"] is None


def test_a_run_goes_on_where_it_was(make_run, tmp_path: Path) -> None:
    run = make_run(["base", "phatgoose"])
    going = run.go()
    assert [next(going).status for _ in range(4)] == ["done"] * 4
    going.close()
    again = make_run(["base", "phatgoose"])
    assert statuses(again) == ["unchanged"] * 4 + ["done"] * 2
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.name != LOCK_FILE]
    older = {name: part for name, part in told(run, "base", "near", "even").items() if name != "guess"}
    run.cells["base", "near", "even"].path.write_text(json.dumps(older))
    assert statuses(again).count("done") == 1  # what an earlier version wrote without it is made anew
    assert statuses(make_run(["base", "phatgoose"], rows=2)) == ["done"] * 6  # another subset
    write(tmp_path / "say.jsonl", SAY[:2])
    assert statuses(make_run(["base", "phatgoose"], rows=2)) == ["unchanged"] * 4 + ["done"] * 2


def test_a_second_run_into_one_folder_is_told(make_run) -> None:
    first = make_run(["base"]).go()
    next(first)
    with pytest.raises(ConfigError, match="another one at work"):
        next(make_run(["base"]).go())
    assert [result.status for result in first] == ["done"] * 2


@pytest.mark.slow
def test_workers_give_the_results_of_one_process(make_run, tmp_path: Path) -> None:
    run = make_run(["base", "oracle"])
    assert statuses(run) == ["done"] * len(run.cells)
    scores = {key: cell.read() for key, cell in run.cells.items()}
    shutil.rmtree(tmp_path / "out")
    names: set[str] = set()
    results = list(run.go(lambda name, text, share: names.add(name), LocalExecutor(2)))
    assert {result.status for result in results} == {"done"}
    assert {cell.name for cell in run.cells.values() if not cell.plan.of_results} == names
    for key, cell in run.cells.items():
        alone, shared = scores[key], cell.read()
        assert alone is not None and shared is not None
        assert [row["prediction"] for row in shared["results"]] == [row["prediction"] for row in alone["results"]]


def test_a_base_that_is_missing_stops_the_run(make_run) -> None:
    run = make_run(["base", "phatgoose"], base="nobody/no-such-model")
    with pytest.raises(BaseModelError, match="no-such-model"):
        list(run.go())
    assert not list(run.out.rglob("*.json"))


def test_an_interruption_leaves_whole_files(make_run) -> None:
    run = make_run(["base"])

    def stop(name: str, text: str, share: float) -> None:
        if name.endswith("/even"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run.go(stop))
    assert run.cells["base", "near", "e0"].read() is not None
    assert not run.cells["base", "near", "even"].path.exists()
    assert statuses(make_run(["base"])) == ["unchanged", "done", "done"]


def test_a_failed_task_is_a_fault_and_no_number(make_run, tmp_path: Path) -> None:
    write(tmp_path / "even.jsonl", [{**EVEN[0], "output": "maybe"}])
    run = make_run(["base"])
    assert statuses(run) == ["done", "failed", "done"]
    fault = told(run, "base", "near", "even")
    assert "score" not in fault and "results" not in fault
    assert fault["fault"]["type"] == "DataError" and "maybe" in fault["fault"]["message"]
    (near, far) = table(run)
    assert near.score is None and near.missing == ("even",) and far.score is not None
    write(tmp_path / "even.jsonl", EVEN)
    assert statuses(make_run(["base"])) == ["unchanged", "unchanged", "done"]


def test_a_router_the_pool_cannot_serve_fails_alone(make_run) -> None:
    run = make_run(["single:nobody", "base"])
    assert statuses(run) == ["failed"] * 3 + ["done"] * 3
    assert "nobody" in told(run, "single:nobody", "far", "say")["fault"]["message"]


def test_an_embedding_that_fails_is_a_fault_and_no_number(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise EndpointError("vectors", "a connection refused", "Start the endpoint.")

    monkeypatch.setattr("glider.inference.descriptions.load_for", broken)
    run = make_run(["glider", "phatgoose"])
    assert statuses(run) == ["failed"] * 3 + ["done"] * 3
    assert "connection refused" in told(run, "glider", "near", "even")["fault"]["message"]


def test_likelihoods_and_logits_that_are_no_numbers_are_a_fault(make_run) -> None:
    run = make_run(["base"])
    head = run.base().model.get_output_embeddings()
    head.weight.data[0] = float("nan")
    assert statuses(run) == ["failed", "failed", "failed"]
    assert "finite" in told(run, "base", "near", "even")["fault"]["message"]


def test_a_lora_beside_the_pool_that_changes_is_evaluated_anew(
    make_run, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pool["e0"].directory, tmp_path / "many" / "e0")
    routers = [{"router": "multitask:many/{task}", "name": "own"}]
    assert statuses(make_run(routers)) == ["done", "failed", "failed"]
    assert statuses(make_run(routers))[0] == "unchanged"
    monkeypatch.chdir(tmp_path)
    there = Run(RunPlan.read(Path("run.yaml")), Path(), Path("out"))  # by another way to the same place
    assert statuses(there)[0] == "unchanged" and told(there, "own", "near", "e0")["config"]["router"] == {
        "router": "multitask:e0",
        "settings": {},
    }
    shutil.copytree(pool["e1"].directory, tmp_path / "many" / "e0", dirs_exist_ok=True)
    assert statuses(make_run(routers))[0] == "done"


def test_a_result_that_is_no_object_is_evaluated_anew(make_run) -> None:
    run = make_run(["base"])
    list(run.go())
    for cell in run.cells.values():
        cell.path.write_text("[]")
    assert statuses(make_run(["base"])) == ["done"] * 3


@pytest.mark.parametrize(
    "damage", [{"format": 2}, {"format": "1"}, {"router": "phatgoose"}, {"set": ["near"]}, {"task": "other"}]
)
def test_a_result_under_another_name_is_evaluated_anew(make_run, damage: dict) -> None:
    """Of one with a damaged head a report made another router's or another task's; the run left it as it was."""
    run = make_run(["base"])
    list(run.go())
    intact = told(run, "base", "near", "even")
    run.cells["base", "near", "even"].path.write_text(json.dumps(intact | damage))
    again = make_run(["base"])
    assert sorted(statuses(again)) == ["done", "unchanged", "unchanged"]
    head = {name: told(again, "base", "near", "even")[name] for name in damage}
    assert head == {name: intact[name] for name in damage}


@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize("places", [[0], [0, 0], [7], [1, 0]])
def test_a_result_of_other_rows_is_evaluated_anew_or_refused(make_run, places: list[int], consistent: bool) -> None:
    """With the cell's own key it was a traceback of the table, or a test between one row and many."""
    run = make_run(["base", "phatgoose"])
    list(run.go())
    forged = told(run, "phatgoose", "near", "even")
    results = [{**forged["results"][0], "place": place} for place in places]
    count = len(results) if consistent else forged["rows"]
    run.cells["phatgoose", "near", "even"].path.write_text(json.dumps({**forged, "results": results, "rows": count}))
    again = make_run(["base", "phatgoose"])
    if statuses(again).count("done"):
        table(again)
    else:
        assert consistent
        with pytest.raises(DataError, match="the same rows of near/even"):
            table(again)


def test_the_precision_of_products_holds_for_the_run_alone(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from glider.evaluation import cells

    seen = []
    real = cells.score_rows_of

    def watched(*arguments: Any, **settings: Any) -> Any:
        seen.append(torch.get_float32_matmul_precision())
        return real(*arguments, **settings)

    monkeypatch.setattr(cells, "score_rows_of", watched)
    run = make_run(["base"], matmul="medium")
    assert statuses(run) == ["done"] * 3
    assert set(seen) == {"medium"} and torch.get_float32_matmul_precision() == "highest"
    assert told(run, "base", "near", "even")["config"]["matmul"] == "medium"


def test_one_cell_can_be_evaluated_alone(make_run, tmp_path: Path, glider: Callable[..., CommandResult]) -> None:
    make_run(["base", "phatgoose", "oracle"])
    out = tmp_path / "out"

    def evaluate(*options: str) -> CommandResult:
        return glider("evaluate", tmp_path / "run.yaml", "--out", out, *options)

    assert evaluate("--router", "phatgoose", "--task", "even").code == 0
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.json")) == ["phatgoose/near/even.json"]
    assert evaluate("--router", "base", "--set", "far").code == 0
    assert [path.name for path in (out / "base").rglob("*.json")] == ["say.json"]
    assert evaluate("--router", "oracle", "--task", "say").code == 0
    assert json.loads((out / "oracle" / "far" / "say.json").read_text())["oracle"]["expert"] in {"e0", "e1", "e2"}
    make_run([{"router": "oracle", "name": "best"}, "single:{task}"])
    assert evaluate("--router", "best", "--task", "say").code == 0
    assert json.loads((out / "best" / "far" / "say.json").read_text())["oracle"]["expert"] in {"e0", "e1", "e2"}
    assert not list(out.rglob("single-task/**/*.json"))
    ended = evaluate("--task", "evn")
    assert ended.code == 2 and "a task of the run (e0, even, say); got evn" in ended.err
    ended = evaluate("--set", "fear")
    assert ended.code == 2 and "a set of the run (far, near); got fear" in ended.err


def test_a_missing_package_is_told_before_the_base_is_loaded(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    metrics._rouge.cache_clear()
    run = make_run(["base"], base="nobody/no-such-model", sets={"far": {"tasks": ["say.jsonl"]}})
    (result,) = run.go()
    assert "rouge-score" in result.message
