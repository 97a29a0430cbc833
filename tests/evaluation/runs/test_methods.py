"""What some methods are given beside a row: single experts, few-shot rows, descriptions, examples."""

import json
from pathlib import Path

import pytest

from glider.errors import DataError
from glider.experts.pool import Pool
from glider.inference.queries import Query
from glider.inference.spec import load

from .run_files import EVEN, statuses, told


def test_the_oracle_is_the_best_single_expert_of_each_task(make_run, pool: Pool) -> None:
    run = make_run(["oracle", "single:{task}", "single:e0"])
    assert statuses(run) == ["absent"] * 2 + ["done"] * 13  # the oracle comes last
    for where, task in (("near", "even"), ("far", "say")):
        scores = {name: told(run, f"single:{name}", where, task)["score"] for name in pool.names}
        oracle = told(run, "oracle", where, task)
        assert oracle["score"] == max(scores.values()) and oracle["oracle"]["scores"] == scores
    own, single = told(run, "single:{task}", "near", "e0"), told(run, "single:e0", "near", "e0")
    assert [row["choices"] for row in own["results"]] == [row["choices"] for row in single["results"]]


def test_the_oracle_takes_no_score_that_is_not_of_the_rows(make_run) -> None:
    """Without a score, or with a word, the oracle failed for good; another number decided which is the best."""
    run = make_run(["oracle"])
    statuses(run)
    single, oracle = run.cells["single:e0", "far", "say"].path, run.cells["oracle", "far", "say"].path
    right, best = json.loads(single.read_text()), json.loads(oracle.read_text())
    for score in ("high", None, 0.987, float("nan")):
        single.write_text(json.dumps({**right, "score": score}))
        oracle.unlink()
        assert set(statuses(run)) <= {"done", "unchanged"}
        assert json.loads(single.read_text())["score"] == right["score"]
        assert json.loads(oracle.read_text())["oracle"] == best["oracle"]


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
