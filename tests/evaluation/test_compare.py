"""Routers compared on the same rows, with honest statistics."""

import json
import sys
from pathlib import Path

import pytest

from glider.cli.main import main
from glider.contribute.examples import Row
from glider.errors import DataError, RouterError
from glider.evaluation.compare import compare
from glider.evaluation.scoring import score_rows
from glider.evaluation.statistics import mean_interval, paired_p
from glider.loading import load

CHOICE_ROWS = [Row(input=f"is {i} even?", output=("yes", "no")[i % 2], choices=("yes", "no")) for i in range(12)]
TEXT_ROWS = [Row(input=f"say {i}", output=f"it is {i}") for i in range(5)]


def test_entries_are_what_each_router_scores_alone(make_pool, llama_directory: Path) -> None:
    pool = make_pool(llama_directory)
    names = ["base", "single:e1", "phatgoose"]
    entries = list(compare(pool.path, CHOICE_ROWS, names, base=str(llama_directory)))
    assert [entry.router for entry in entries] == names
    for entry in entries:
        alone = score_rows(load(str(llama_directory), pool.path, router=entry.router), CHOICE_ROWS)
        assert entry.scores == alone.scores and entry.metric == "accuracy"
        assert entry.low <= entry.score <= entry.high
    assert entries[0].p_value is None and entries[0].expert_megabytes == 0
    assert 0 < entries[1].expert_megabytes < entries[2].expert_megabytes


def test_oracle_is_the_best_single_expert(make_pool, llama_directory: Path) -> None:
    pool = make_pool(llama_directory)
    singles = [f"single:{name}" for name in pool.names]
    *alone, oracle = compare(pool.path, CHOICE_ROWS, [*singles, "oracle"], base=str(llama_directory))
    assert oracle.score == max(entry.score for entry in alone)
    assert oracle.note in singles


def test_free_text_is_scored_by_overlap_and_exact_match(make_pool, llama_directory: Path) -> None:
    pool = make_pool(llama_directory)
    (entry,) = compare(pool.path, TEXT_ROWS, ["base"], base=str(llama_directory), max_new_tokens=3)
    assert entry.metric == "rougeL" and entry.exact is not None


@pytest.mark.parametrize(("names", "told"), [(["base", "nothing"], "nothing"), (["base", "lorahub"], "few-shot")])
def test_what_cannot_be_run_is_refused_before_a_model_is_loaded(make_pool, llama_directory, names, told) -> None:
    pool = make_pool(llama_directory)
    with pytest.raises(RouterError, match=told):
        next(compare(pool.path, CHOICE_ROWS, names, base="nobody/no-such-model"))


def test_interval_and_p_value_tell_a_difference_from_none() -> None:
    low, high = mean_interval([0.0, 1.0] * 50)
    assert 0.35 < low < 0.5 < high < 0.65
    assert mean_interval([1.0, 1.0]) == (1.0, 1.0)
    worse, better = [0.0] * 40, [1.0] * 30 + [0.0] * 10
    assert paired_p(worse, better) < 0.01
    assert paired_p(better, better) == 1.0
    assert paired_p([0.0, 1.0] * 20, [1.0, 0.0] * 20) > 0.5


def test_command_prints_a_table_and_json(make_pool, llama_directory, tmp_path: Path, monkeypatch, capsys) -> None:
    pool = make_pool(llama_directory)
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(row.model_dump_json() for row in CHOICE_ROWS))
    shared = ["compare", "--pool", str(pool.path), "--base", str(llama_directory), "--data", str(data)]
    for extra in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["glider", *shared, "--routers", "base,glider", "--rows", "6", *extra])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        out = capsys.readouterr().out
    told = json.loads(out)
    assert told["rows"] == 6 and [entry["router"] for entry in told["entries"]] == ["base", "glider"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([*CHOICE_ROWS, *TEXT_ROWS], "both kinds"),
        ([Row(input="a", output=" No", choices=("Yes", "No"))], "' No'"),
    ],
)
def test_rows_whose_score_would_mean_nothing_are_refused(make_pool, llama_directory, rows, told) -> None:
    with pytest.raises(DataError, match=told):
        next(compare(make_pool(llama_directory).path, rows, ["base"], base="nobody/no-such-model"))


def test_one_row_has_no_p_value_to_speak_of() -> None:
    assert paired_p([0.0], [1.0]) == 1.0
