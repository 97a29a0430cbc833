"""Routers x tasks on disk: what a run writes, how it goes on, and what it refuses."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from glider.cli.main import main
from glider.errors import BaseModelError, ConfigError, DataError, EndpointError, GliderError
from glider.evaluation.run_plan import RunPlan
from glider.evaluation.run_table import table
from glider.evaluation.runs import Run
from glider.experts.pool import Pool
from glider.inference.queries import Query
from glider.inference.spec import load
from glider.jobs.local import LocalExecutor
from glider.jobs.run import LOCK_FILE
from glider.routing.select import TopK

EVEN = [
    {"id": f"even-{i}", "input": f"is {i} even{'?' * i}", "output": ("yes", "no")[i % 2], "choices": ["yes", "no"]}
    for i in range(8)
]
SAY = [{"input": f"say {i}", "output": f"it is {i}", "references": [f"it is {i}", f"{i}"]} for i in range(3)]


def write(path: Path, rows: list[dict], **extra: Any) -> None:
    path.write_text("\n".join(json.dumps({"split": "test", **row, **extra}) for row in rows))


@pytest.fixture
def pool(make_pool, base_directory: Path) -> Pool:
    return make_pool(base_directory)


@pytest.fixture
def make_run(pool: Pool, base_directory: Path, tmp_path: Path):
    """`make_run(routers, **settings)`: a run over two small sets, its results in `tmp_path / "out"`."""
    write(tmp_path / "even.jsonl", EVEN)
    write(tmp_path / "e0.jsonl", EVEN[:4])
    write(tmp_path / "say.jsonl", SAY)

    def make(routers: list, **settings: Any) -> Run:
        sets = {"near": {"tasks": ["e*.jsonl"]}, "far": {"tasks": ["say.jsonl"], "max_new_tokens": 3}}
        told = {"pool": str(pool.path), "base": str(base_directory), "routers": routers, "sets": sets, **settings}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
        return Run(RunPlan.read(tmp_path / "run.yaml"), tmp_path, tmp_path / "out")

    return make


def statuses(run: Run) -> list[str]:
    return [result.status for result in run.go()]


def told(run: Run, router: str, where: str, task: str) -> dict:
    return json.loads(run.cells[router, where, task].path.read_text())


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


def test_the_oracle_is_the_best_single_expert_of_each_task(make_run, pool: Pool) -> None:
    run = make_run(["oracle", "single:{task}", "single:e0"])
    assert statuses(run) == ["absent"] * 2 + ["done"] * 13  # the oracle comes last
    for where, task in (("near", "even"), ("far", "say")):
        scores = {name: told(run, f"single:{name}", where, task)["score"] for name in pool.names}
        oracle = told(run, "oracle", where, task)
        assert oracle["score"] == max(scores.values()) and oracle["oracle"]["scores"] == scores
    own, single = told(run, "single:{task}", "near", "e0"), told(run, "single:e0", "near", "e0")
    assert [row["choices"] for row in own["results"]] == [row["choices"] for row in single["results"]]


def test_lorahub_searches_on_rows_that_are_not_evaluated(make_run, tmp_path: Path, pool: Pool) -> None:
    train = [{**row, "input": f"train {row['input']}", "split": "train"} for row in EVEN[:4]]
    (tmp_path / "even.jsonl").write_text("\n".join(json.dumps({"split": "test", **row}) for row in [*EVEN, *train]))
    run = make_run([{"router": "lorahub", "settings": {"budget": 2}, "fewshot": 3}], fewshot_splits=["train"])
    assert statuses(run) == ["failed", "done", "failed"]  # the others have no training rows
    found = told(run, "lorahub", "near", "even")
    assert found["lorahub"]["rows"] == 3 and set(found["lorahub"]["weights"]) == set(pool.names)
    assert all("train" not in row.input for row in run.tasks[1].evaluated_rows().rows)
    assert all("train" in row.input for row in run.tasks[1].fewshot(3, ["train"]))
    with pytest.raises(DataError, match="few-shot"):
        run.tasks[1].fewshot(3, ["test"])  # every test row is evaluated


def test_a_description_stands_for_the_query(make_run, pool: Pool, base_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "told.json").write_text(json.dumps({"even": "Tell even numbers from odd ones."}))
    routers = ["glider", {"router": "glider", "descriptions": False, "name": "text"}]
    run = make_run(routers, descriptions="told.json")
    assert set(statuses(run)) == {"done"}
    model = load(str(base_directory), pool.path)
    query = Query(EVEN[0]["input"], description="Tell even numbers from odd ones.")
    for name, asked in (("glider", query), ("text", EVEN[0]["input"])):
        wanted = [score.normalised for score in model.score(asked, EVEN[0]["choices"])]
        assert told(run, name, "near", "even")["results"][0]["choices"] == pytest.approx(wanted, abs=2e-3)


def test_examples_of_the_task_come_with_every_query(make_run, make_pool, base_directory: Path, tmp_path: Path) -> None:
    shown = [{**row, "input": "the e2 e21 and e22 and e23 and", "split": "train"} for row in EVEN[:2]]
    words = {"router": "glider", "settings": {"global_": "examples", "p": 0.5}}
    known = make_pool(base_directory, name="known", profile=True)
    routers = [{**words, "name": "none"}, {**words, "examples": 2, "name": "two"}]
    (tmp_path / "even.jsonl").write_text("\n".join(json.dumps({"split": "test", **row}) for row in [*EVEN, *shown]))
    run = make_run(routers, pool=str(known.path))
    assert statuses(run) == ["done"] * 3 + ["failed", "done", "failed"]  # the others have no training rows
    with_two, without = (told(run, name, "near", "even") for name in ("two", "none"))
    assert {row["expert"] for row in with_two["results"]} == {"e2"} != {row["expert"] for row in without["results"]}
    assert with_two["config"]["examples"]["rows"] == 2 and "examples" not in without["config"]
    model = load(str(base_directory), known.path, global_="examples", p=0.5)
    query = Query(EVEN[0]["input"], examples=(("the e2 e21 and e22 and e23 and", "yes"),) * 2)
    wanted = [score.normalised for score in model.score(query, EVEN[0]["choices"])]
    assert with_two["results"][0]["choices"] == pytest.approx(wanted, abs=2e-3)


def test_an_embedding_that_fails_is_a_fault_and_no_number(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise EndpointError("vectors", "a connection refused", "Start the endpoint.")

    monkeypatch.setattr("glider.inference.queries.load_for", broken)
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


def test_single_experts_of_an_oracle_are_no_rows_of_the_table(make_run) -> None:
    run = make_run(["oracle", "base"])
    list(run.go())
    entries = table(run)
    assert {entry.router for entry in entries} == {"oracle", "base"}
    assert entries[0].p_value is None
    assert all(entry.p_holm == entry.p_value for entry in entries if entry.router == "base")


def test_rows_without_splits_are_all_evaluated(make_run, tmp_path: Path) -> None:
    (tmp_path / "even.jsonl").write_text("\n".join(map(json.dumps, EVEN)))
    assert len(make_run(["base"]).tasks[1].evaluated_rows().rows) == 8


def test_subsets_are_drawn_by_the_seed(make_run) -> None:
    first, same, other = (make_run(["base"], rows=4, seed=seed).tasks[1].evaluated_rows() for seed in (0, 0, 1))
    assert first.places == same.places == sorted(first.places) != other.places
    assert len(first.rows) == 4 and first.available == 8
    assert all(
        make_run(["base"], rows=3, seed=seed).tasks[1].evaluated_rows().guess == 0.5 for seed in range(3)
    )  # of all rows


def test_a_few_rows_without_choices_are_left_out_and_counted(make_run, tmp_path: Path) -> None:
    rows = [*EVEN * 4, {"input": "?", "output": "(A)"}]
    write(tmp_path / "even.jsonl", rows)
    chosen = make_run(["base"]).tasks[1].evaluated_rows()
    assert (len(chosen.rows), chosen.available, chosen.left_out) == (32, 33, 1)
    write(tmp_path / "even.jsonl", rows[-3:])
    with pytest.raises(DataError, match="1 of 3"):
        make_run(["base"]).tasks[1].evaluated_rows()


def test_the_table_tests_each_router_against_the_first(make_run) -> None:
    run = make_run(["base", "single:e0", "single:e1"])
    list(run.go())
    entries = table(run)
    assert [(entry.router, entry.set) for entry in entries][:3] == [
        ("base", "near"),
        ("base", "far"),
        ("single:e0", "near"),
    ]
    assert entries[0].p_value is None and entries[2].p_value is not None and entries[2].p_holm is not None
    assert entries[2].p_holm >= entries[2].p_value
    for entry in entries:
        assert entry.score is not None and entry.rows_interval is not None
        assert entry.rows_interval[0] <= entry.score <= entry.rows_interval[1]


@pytest.mark.parametrize(
    ("routers", "settings", "parts"),
    [
        (["nothing"], {}, ["nothing"]),
        ([{"router": "glider", "settings": {"temper": 1}}], {}, ["temper"]),
        (["base", "base"], {}, ["base twice"]),
        (["base"], {"sets": {"a": {"tasks": ["no.jsonl", "none*.jsonl"]}}}, ["no.jsonl", "none*.jsonl"]),
        (["base"], {"metrics": {"nobody": "squad"}}, ["nobody"]),
        (["base"], {"metrics": {"say": "accurate"}, "row": 3}, ["metrics.say", "row"]),
        (["base"], {"descriptions": "no.json"}, ["no.json"]),
        (["base"], {"dtype": "float99"}, ["float99"]),
        ([{"router": "base", "name": "a:b"}, {"router": "base", "name": "a/b"}], {}, ["a-b"]),
    ],
)
def test_faults_of_the_run_file_are_told_before_anything_is_loaded(make_run, routers, settings, parts) -> None:
    with pytest.raises(GliderError) as fault:
        make_run(routers, **settings)
    assert all(part in str(fault.value) for part in parts), fault.value


def test_a_metric_that_needs_choices_is_a_fault_without(make_run) -> None:
    run = make_run(["base"], metrics={"say": "accuracy"})
    assert statuses(run) == ["done", "done", "failed"]


def test_no_run_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        RunPlan.read(tmp_path / "run.yaml")


def test_the_command_prints_a_table_and_json(make_run, tmp_path: Path, monkeypatch, capsys) -> None:
    make_run(["base", "phatgoose"], metrics={"say": "bleu"})
    for extra, code in (([], 0), (["--json"], 0)):
        monkeypatch.setattr(
            sys, "argv", ["glider", "evaluate", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "o")]
        )
        sys.argv += extra
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == code
        out = capsys.readouterr().out
        if not extra:
            assert "phatgoose" in out and "6 done" in out
    assert [entry["router"] for entry in json.loads(out)["entries"]] == ["base", "base", "phatgoose", "phatgoose"]


def test_a_run_names_its_device(make_run) -> None:
    assert statuses(make_run(["base"], device="cpu")) == ["done"] * 3
    assert statuses(make_run(["base"])) == ["unchanged"] * 3
    with pytest.raises(ConfigError, match="cpu or cuda"):
        make_run(["base"], device="abacus")


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


def test_one_cell_can_be_evaluated_alone(
    make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(["base", "phatgoose", "oracle"])
    out = tmp_path / "out"

    def evaluate(*options: str) -> int:
        command = ["glider", "evaluate", str(tmp_path / "run.yaml"), "--out", str(out), *options]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert evaluate("--router", "phatgoose", "--task", "even") == 0
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.json")) == ["phatgoose/near/even.json"]
    assert evaluate("--router", "base", "--set", "far") == 0
    assert [path.name for path in (out / "base").rglob("*.json")] == ["say.json"]
    assert evaluate("--router", "oracle", "--task", "say") == 0
    assert json.loads((out / "oracle" / "far" / "say.json").read_text())["oracle"]["expert"] in {"e0", "e1", "e2"}
    make_run([{"router": "oracle", "name": "best"}, "single:{task}"])
    assert evaluate("--router", "best", "--task", "say") == 0
    assert json.loads((out / "best" / "far" / "say.json").read_text())["oracle"]["expert"] in {"e0", "e1", "e2"}
    assert not list(out.rglob("single-task/**/*.json"))
    capsys.readouterr()
    assert evaluate("--task", "evn") == 2
    assert "a task of the run (e0, even, say); got evn" in capsys.readouterr().err
    assert evaluate("--set", "fear") == 2
    assert "a set of the run (far, near); got fear" in capsys.readouterr().err
