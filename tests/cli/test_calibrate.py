"""`glider pool calibrate`: what is refused leaves a pool as it was, and what was chosen is told."""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from glider.calibration.verdict import choose_thresholds
from glider.cli.main import build, main
from glider.cli.pool_calibrate import expected_lines
from glider.errors import ConfigError, DataError, GliderWarning, PoolError
from glider.experts.pool import Pool
from glider.experts.thresholds import Thresholds
from glider.inference.queries import Query
from glider.inference.spec import load
from glider.sharing.signature import generate_keys, sign_pool

Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    """`run("calibrate", path)` runs a command of `glider pool`; its output, errors and exception."""

    def made(*arguments: object) -> SimpleNamespace:
        ran = CliRunner().invoke(build("pool"), ["pool", *map(str, arguments)])
        return SimpleNamespace(out=ran.stdout, err=ran.stderr, fault=ran.exception, code=ran.exit_code)

    return made


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--unsure-by", "descriptions"), PoolError),
        (("--data", "rows.jsonl"), ConfigError),
        (("--data", "{name}.jsonl", "--signal", "hidden"), DataError),
    ],
)
def test_a_refused_choice_leaves_the_pool_as_it_was(
    run: Run, make_pool, llama_directory: Path, options: tuple[str, ...], fault: type[Exception]
) -> None:
    """p was stored before the rest was looked at: a pool with a threshold, and without verdicts."""
    pool: Pool = make_pool(llama_directory, 3, profile=True, embedder=None)
    index = pool.path / "pool.json"
    before = index.read_bytes()
    assert isinstance(run("calibrate", pool.path, *options).fault, fault)
    assert index.read_bytes() == before


@pytest.mark.parametrize(("share", "many"), [(0.0219, False), (0.8219, True)])
def test_many_everyday_requests_that_are_no_strangers_are_told_with_a_remedy(share: float, many: bool) -> None:
    chosen = Thresholds(stranger=0.0, fits=1.0, false_acceptance=share, strangers=320)
    lines = "\n".join(expected_lines(chosen))
    assert f"of everyday requests {share:.1%} are not" in lines
    assert ("let rows and queries say what to do" in lines) == many


def test_requests_of_a_background_need_no_answers(run: Run, make_pool, llama_directory: Path, tmp_path: Path) -> None:
    pool: Pool = make_pool(llama_directory, 3, profile=True)
    rows = [
        {"input": "Plan a meal for two."},
        {"prompt": "Name a river.", "completion": "The Rhine."},
        {"instruction": "Translate this.", "input": "a cat"},
        {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A model."}]},
    ]
    (tmp_path / "everyday.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = run("calibrate", pool.path, "--background", tmp_path / "everyday.jsonl")
    assert ran.code == 0, ran.fault
    own = pool.reload().background
    assert own is not None and len(own.of_fold(len(own.counts) - 1)) == 4
    (tmp_path / "empty.jsonl").write_text('{"input": "Name a river."}\n{"input": " "}\n')
    with pytest.raises(DataError, match="request 2"):
        raise run("calibrate", pool.path, "--background", tmp_path / "empty.jsonl").fault


def test_what_chooses_for_unsure_queries_is_told(run: Run, make_pool, grow_pool, llama_directory: Path) -> None:
    pool: Pool = grow_pool(
        make_pool(llama_directory, 3, profile=True), llama_directory, "silent", embedder=None, profile=True
    )
    line = (
        "unsure queries are routed token by token\n  with a description, if each expert has one too, they mix 3 experts"
    )
    assert line in run("calibrate", pool.path).out and line in run("ls", pool.path).out
    told = run("calibrate", pool.path, "--unsure-by", "descriptions")
    line = "unsure queries get the 3 experts with the nearest descriptions"
    assert line in told.out and "no unsure query gets silent, without a description" in told.err
    assert line in run("ls", pool.path).out
    as_json = run("calibrate", pool.path, "--json")
    assert json.loads(as_json.out)["verdicts"]["nearest_by"] == "descriptions"


def test_no_more_experts_are_told_than_there_are(run: Run, make_pool, llama_directory: Path) -> None:
    pool: Pool = make_pool(llama_directory, 2, profile=True)
    assert "they mix 2 experts" in run("calibrate", pool.path).out
    assert "unsure queries get the 2 experts nearest" in run("calibrate", pool.path, "--unsure-by", "signal").out


def test_unsure_queries_may_be_routed_token_by_token(run: Run, make_pool, llama_directory: Path) -> None:
    pool: Pool = make_pool(llama_directory, 3, profile=True)
    line = "unsure queries are routed token by token"
    assert line not in run("calibrate", pool.path, "--unsure-by", "signal").out
    told = run("calibrate", pool.path, "--unsure-by", "tokens")
    assert line in told.out and line in run("ls", pool.path).out and told.err == ""
    assert line in run("calibrate", pool.path).out  # it stays
    thresholds = pool.reload().index.verdicts
    assert thresholds is not None
    everything = thresholds.model_copy(update={"stranger": -1000.0})
    model = load(str(llama_directory), pool.reload().set_verdicts(everything).path)
    condition = model.condition(["the qqq"])
    assert condition.verdicts == ("unsure",)
    assert condition.settled is None or not bool(condition.settled.weights.any())
    for choice in ("descriptions", "signal"):
        assert line not in run("calibrate", pool.path, "--unsure-by", choice).out
        thresholds = pool.reload().index.verdicts
        assert thresholds is not None and (thresholds.nearest_by, thresholds.experts) == (choice, 3)


@pytest.mark.parametrize("experts", [1, 3])
def test_unsure_queries_may_be_left_to_the_base(run: Run, make_pool, llama_directory: Path, experts: int) -> None:
    pool: Pool = make_pool(llama_directory, experts, profile=True)
    line = "unsure queries are left to the base model alone"
    assert line in run("calibrate", pool.path, "--unsure-by", "base").out and line in run("ls", pool.path).out
    assert line in run("calibrate", pool.path).out  # it stays
    thresholds = pool.reload().index.verdicts
    assert thresholds is not None
    unsure = thresholds.model_copy(update={"stranger": -1000.0, "fits": 1000.0})
    model = load(str(llama_directory), pool.reload().set_verdicts(unsure).path)
    queries = [Query("the qqq"), Query("the qqq", description="zzz"), Query("the qqq", verdict="route")]
    condition = model.condition(queries)
    assert condition.verdicts == ("unsure",) * 3
    assert condition.bare_rows.tolist() == [True, True, False]
    answer, _, routed = model.generate(queries, max_new_tokens=8)
    assert answer.token_ids == model.generate([Query("the qqq", verdict="base")], max_new_tokens=8)[0].token_ids
    assert routed.verdict == answer.verdict == "unsure"
    run("calibrate", pool.path, "--unsure-by", "tokens")
    thresholds = pool.reload().index.verdicts
    assert thresholds is not None and (thresholds.experts, thresholds.share) == (0, 1)
    assert line not in run("ls", pool.path).out


def test_one_expert_needs_no_description_to_be_judged(run: Run, make_pool, llama_directory: Path) -> None:
    """Its thresholds stayed those of experts that had gone."""
    pool: Pool = make_pool(llama_directory, 1, profile=True, embedder=None)
    told = run("calibrate", pool.path, "--unsure-by", "descriptions")
    assert told.code == 0 and "one expert leaves descriptions nothing to choose" in told.err
    assert "unsure queries" not in told.out + run("ls", pool.path).out


def test_a_warning_is_a_line_of_ours(make_pool, grow_pool, llama_directory: Path, monkeypatch) -> None:
    """`pool remove` named the line of code that had warned."""
    pool: Pool = make_pool(llama_directory, 1, profile=True)
    for name in ("silent", "mute"):
        pool = grow_pool(pool, llama_directory, name, embedder=None, profile=True)
    pool.set_verdicts(choose_thresholds(pool, nearest_by="descriptions"))
    monkeypatch.setattr(sys, "argv", ["glider", "pool", "remove", str(pool.path), "e0"])
    monkeypatch.setattr(warnings, "formatwarning", lambda *_: "as Python prints it")
    with pytest.warns(GliderWarning) as told, pytest.raises(SystemExit):
        main()
    [warning] = told
    line = warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno)
    assert line.startswith("glider: the thresholds of verdicts are those of other experts")
    assert "with --unsure-by signal" in line


def test_an_owner_is_told_that_a_signature_is_of_another_state(
    run: Run, make_pool, llama_directory: Path, tmp_path: Path
) -> None:
    pool: Pool = make_pool(llama_directory, 3, profile=True)
    private, public = tmp_path / "key", tmp_path / "key.pub"
    generate_keys(private, public)
    told = "is not as it was signed; to sign it anew: glider pool sign"
    assert told not in run("rename", pool.path, "e2", "other").err
    sign_pool(pool.path, private)
    for change in (("calibrate", pool.path), ("rename", pool.path, "e1", "late"), ("remove", pool.path, "late")):
        assert told in run(*change, "--key", public).err
        sign_pool(pool.path, private)
    assert told not in run("calibrate", pool.path, "--key", public).err  # nothing changed
    assert told in run("add", pool.path, "e1", "--key", public).err


def test_one_expert_is_one(run: Run, make_pool, llama_directory: Path) -> None:
    pool: Pool = make_pool(llama_directory, 1)
    assert run("ls", pool.path).out.startswith("1 expert for ")


def test_an_expert_that_is_missing_leaves_the_pool_as_it_was(run: Run, make_pool, llama_directory: Path) -> None:
    """Those before it had joined."""
    pool: Pool = make_pool(llama_directory, 2, profile=True)
    assert run("remove", pool.path, "e1").code == 0
    told = run("add", pool.path, "e1", "nosuch")
    assert "nosuch, which is not there" in str(told.fault), told
    assert Pool.open(pool.path).names == ["e0"]


def test_a_renamed_expert_is_named_with_the_directory_of_its_files(run: Run, make_pool, llama_directory: Path) -> None:
    pool: Pool = make_pool(llama_directory, 1)
    assert run("rename", pool.path, "e0", "first").out.endswith(f"its files stay in {pool.path / 'e0'}\n")
    told = run("add", pool.path, pool.path / "first")
    assert f"It was renamed: its files are in {pool.path / 'e0'}." in str(told.fault), told
    assert run("remove", pool.path, "first").out.endswith(f"the files of first are still in {pool.path / 'e0'}\n")
