"""Routers compared on the same rows, with honest statistics."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from glider.contribute.lorahub import search_lorahub
from glider.data.rows import Row
from glider.errors import DataError, GliderError, MissingDependency, RouterError
from glider.evaluation import metrics
from glider.evaluation.compare import compare
from glider.evaluation.evaluated_rows import EvaluatedRows
from glider.evaluation.statistics import mean_interval, paired_p
from glider.evaluation.task_rows import score_rows_of
from glider.inference.base_model import load_base
from glider.inference.model import RoutedModel
from glider.inference.spec import ModelSpec, load
from glider.routing.methods.merge import Merge

from ..commands import CommandResult

CHOICE_ROWS = [Row(input=f"is {i} even?", output=("yes", "no")[i % 2], choices=("yes", "no")) for i in range(12)]
TEXT_ROWS = [Row(input=f"say {i}", output=f"it is {i}") for i in range(5)]


def scores_of(model: RoutedModel) -> list[float]:
    return [result.score for result in score_rows_of(model, EvaluatedRows.of(CHOICE_ROWS), None, 1)]


def test_entries_are_what_each_router_scores_alone(make_pool, llama_directory: Path) -> None:
    pool = make_pool(llama_directory)
    names = ["base", "single:e1", "phatgoose"]
    entries = list(compare(pool.path, CHOICE_ROWS, names, base=str(llama_directory)))
    assert [entry.router for entry in entries] == names
    for entry in entries:
        assert entry.scores == scores_of(load(str(llama_directory), pool.path, router=entry.router))
        assert entry.metric == "accuracy"
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


FEW = [Row(input="is 13 even?", output="no", choices=("yes", "no"))]


@pytest.mark.parametrize(
    ("name", "fewshot", "told"),
    [
        ("nothing", (), "nothing"),
        ("merge(density=0.5)", (), "no density for the mean"),
        ("glider(top_k=4)", (), "k of at most 3"),
        ("adaptersoup(k=9)", (), "k of at most 3"),
        ("single:nobody", (), "nobody"),
        ("lorahub", (), "few-shot"),
        ("lorahub", CHOICE_ROWS[:2], "not evaluated"),
        ("lorahub(budget=0)", FEW, "budget"),
        ("lorahub(colour=1)", FEW, "colour"),
        ('lorahub(population=["nobody"])', FEW, "nobody"),
    ],
)
def test_what_cannot_be_run_is_refused_before_a_model_is_loaded(
    make_pool, llama_directory, name: str, fewshot: Sequence[Row], told: str
) -> None:
    pool = make_pool(llama_directory)
    with pytest.raises(GliderError, match=told):
        next(compare(pool.path, CHOICE_ROWS, ["base", name], base="nobody/no-such-model", fewshot=fewshot))


@pytest.mark.parametrize("name", ["phatgoose", "glider", "phatgoose-query"])
def test_a_router_that_needs_gates_is_refused_on_experts_without(make_pool, llama_directory, name: str) -> None:
    pool = make_pool(llama_directory, gates=False)
    with pytest.raises(RouterError, match="gate"):
        next(compare(pool.path, CHOICE_ROWS, ["base", name], base="nobody/no-such-model"))


@pytest.mark.parametrize("name", ["oracle", "lorahub", "merge", "glider"])
def test_a_router_of_experts_is_refused_on_an_empty_pool(make_pool, llama_directory, name: str) -> None:
    pool = make_pool(llama_directory, 0)
    with pytest.raises(RouterError, match="empty"):
        next(compare(pool.path, CHOICE_ROWS, [name], base="nobody/no-such-model", fewshot=FEW))


def test_an_oracle_is_refused_on_rows_without_labels(make_pool, llama_directory, tmp_path: Path, run_command) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"input": "is 1 even?", "choices": ["yes", "no"]}\n')
    code, _, fault = run_command(
        "--pool",
        make_pool(llama_directory).path,
        "--base",
        "nobody/no-such-model",
        "--data",
        data,
        "--routers",
        "oracle",
    )
    assert code == 2 and "output" in fault


@pytest.mark.parametrize(("package", "rows"), [("nevergrad", CHOICE_ROWS), ("rouge_score.rouge_scorer", TEXT_ROWS)])
def test_a_missing_package_is_told_before_a_model_is_loaded(
    make_pool, llama_directory, monkeypatch: pytest.MonkeyPatch, package: str, rows: Sequence[Row]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    metrics._rouge.cache_clear()
    with pytest.raises(MissingDependency):
        next(compare(make_pool(llama_directory).path, rows, ["lorahub"], base="nobody/no-such-model", fewshot=FEW))


def test_settings_reach_the_router_and_the_search(make_pool, llama_directory: Path) -> None:
    pool, base = make_pool(llama_directory), load_base(str(llama_directory))
    names = ["merge(method=ties)", 'lorahub(budget=3,population=["e1"])']
    ties, found = compare(pool.path, CHOICE_ROWS, names, base=str(llama_directory), fewshot=FEW)
    wanted = load(str(llama_directory), pool.path, router=Merge("ties"))
    assert ties.scores == scores_of(wanted)
    search = search_lorahub(base, pool, FEW, budget=3, population=["e1"])
    assert found.scores == scores_of(ModelSpec(router=search.router).over(base, pool))
    assert [entry.router for entry in (ties, found)] == names


@pytest.mark.parametrize("rows", [CHOICE_ROWS[:4], TEXT_ROWS[:2]], ids=["choices", "text"])
def test_any_model_is_compared_and_each_router_finds_the_base_as_it_was(
    make_pool, base_directory: Path, rows: Sequence[Row]
) -> None:
    names = ["base", "glider", "merge", "base"]
    entries = list(compare(make_pool(base_directory).path, rows, names, base=str(base_directory), max_new_tokens=3))
    assert entries[0].scores == entries[3].scores and entries[3].p_value == 1
    assert all(entry.tokens_per_second > 0 for entry in entries)


def test_interval_and_p_value_tell_a_difference_from_none() -> None:
    low, high = mean_interval([0.0, 1.0] * 50)
    assert 0.35 < low < 0.5 < high < 0.65
    assert mean_interval([1.0, 1.0]) == (1.0, 1.0)
    worse, better = [0.0] * 40, [1.0] * 30 + [0.0] * 10
    assert paired_p(worse, better) < 0.01
    assert paired_p(better, better) == 1.0
    assert paired_p([0.0, 1.0] * 20, [1.0, 0.0] * 20) > 0.5


RunCommand = Callable[..., CommandResult]


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, glider: RunCommand) -> RunCommand:
    """`run_command(*arguments)` runs `glider compare` in a wide terminal: exit code, output, error output."""
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: glider("compare", *arguments)


def test_command_prints_a_table_and_json(make_pool, llama_directory, tmp_path: Path, run_command: RunCommand) -> None:
    pool, data = make_pool(llama_directory), tmp_path / "rows.jsonl"
    data.write_text("\n".join(row.model_dump_json() for row in CHOICE_ROWS))
    routers = ["base", "merge(method=ties,rank=2)", "lorahub(budget=2)"]
    shared = ["--pool", pool.path, "--base", llama_directory, "--data", data, "--routers", ",".join(routers)]
    shared += ["--rows", "6", "--fewshot", data]
    code, table, _ = run_command(*shared)
    assert code == 0
    assert all(
        word in table for word in ("6 rows", "accuracy", "95 %", "p vs base", "tokens/s", "experts MB", *routers)
    )
    code, out, _ = run_command(*shared, "--json")
    told = json.loads(out)
    assert (code, told["rows"], [entry["router"] for entry in told["entries"]]) == (0, 6, routers)
    assert all(len(entry["scores"]) == 6 for entry in told["entries"])


def test_few_shot_rows_are_of_the_training_split_and_not_evaluated(
    make_pool, llama_directory, tmp_path: Path, run_command: RunCommand
) -> None:
    """Evaluated rows once went into lorahub's search, where one file was given for both."""
    pool, data = make_pool(llama_directory), tmp_path / "rows.jsonl"
    rows = [*CHOICE_ROWS[:4], FEW[0].model_copy(update={"split": "test"})]
    data.write_text("\n".join(row.model_dump_json() for row in rows))
    shared = ["--pool", pool.path, "--base", llama_directory, "--data", data, "--routers", "lorahub", "--fewshot", data]
    code, _, fault = run_command(*shared)
    assert code == 2 and "few-shot rows for lorahub; got none" in fault


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
