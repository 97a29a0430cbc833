"""What each expert gains on its own task, and what it does to the rows of others."""

import json
from pathlib import Path

import pytest

from glider.calibration.threshold import calibrate
from glider.calibration.verdict import choose_thresholds
from glider.data.rows import Row
from glider.errors import DataError
from glider.evaluation.pool_check import check_pool
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.spec import ModelSpec


@pytest.fixture
def pool(pool_with_profiles) -> Pool:
    pool: Pool = pool_with_profiles()
    pool = pool.calibrate("examples", calibrate(pool, "examples").model_copy(update={"p": 0.5}))
    return pool.set_verdicts(choose_thresholds(pool))


def rows_of(word: str, count: int = 6) -> list[Row]:
    """Choices of which the base finds some."""
    texts = [f"the {word} {word}{i} and {word}{i + 7} and" for i in range(count)]
    return [Row(input=text, output="ab" if i % 2 else "cd", choices=["ab", "cd"]) for i, text in enumerate(texts)]


def test_gains_are_those_of_the_expert_alone_and_loans_those_of_the_pool(pool: Pool, llama_directory: Path) -> None:
    base = load_base(str(llama_directory))
    # rows named after e1 whose words are e0's: e0 is lent to them
    rows = {"e0": rows_of("e0"), "e1": rows_of("e0", 4), "e2": rows_of("e2")}
    done: list[tuple[str, int]] = []
    checks = {one.expert: one for one in check_pool(pool, base, rows, tick=lambda *step: done.append(step))}
    assert list(checks) == ["e0", "e1", "e2"] and done[-1] == ("glider", 16)
    assert checks["e0"].lent_rows == 4 and checks["e0"].lent is not None
    assert checks["e1"].lent_rows == checks["e2"].lent_rows == 0 and checks["e2"].lent is None
    assert checks["e2"].verdicts == {"fits": 1.0}

    def accuracy(router: str, name: str) -> float:
        model = ModelSpec(router=router).over(base, pool)
        scores = [model.score(row.input, row.choices or []) for row in rows[name]]
        model.detach()
        best = [max(each, key=lambda one: one.normalised).choice for each in scores]
        return sum(choice == row.output for choice, row in zip(best, rows[name], strict=True)) / len(best)

    for name in checks:
        before = accuracy("base", name)
        assert checks[name].base == pytest.approx(before)
        assert checks[name].gain.difference == pytest.approx(accuracy(f"single:{name}", name) - before)
    lent = accuracy("single:e0", "e1") - accuracy("single:e1", "e1")  # those rows fit e0, and are its alone
    assert checks["e0"].lent.difference == pytest.approx(lent)


def test_what_the_base_answers_is_no_experts_fault(pool: Pool, llama_directory: Path) -> None:
    between = [row.model_copy(update={"input": "the e0 and the e1 and the e2 and"}) for row in rows_of("e0", 4)]
    rows = {"e0": rows_of("e0"), "e1": between, "e2": between}
    base = load_base(str(llama_directory))
    lent = [one.lent_rows for one in check_pool(pool, base, rows)]
    pool = pool.set_verdicts(choose_thresholds(pool, experts=3, share=0.0))
    checks = check_pool(pool, base, rows)
    assert sum(lent) > 0 and [one.lent_rows for one in checks] == [0, 0, 0]
    assert checks[1].verdicts == {"unsure": 1.0} and checks[1].routed.difference == 0


def test_rows_are_needed(pool: Pool, llama_directory: Path) -> None:
    with pytest.raises(DataError, match="rows of the experts' tasks"):
        check_pool(pool, load_base(str(llama_directory)), {"other": rows_of("e0")})


def test_the_command_names_who_hurts(glider, pool: Pool, llama_directory: Path, tmp_path: Path) -> None:
    for name in pool.names:
        lines = [row.model_dump(exclude_none=True) for row in rows_of(name)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf8")
    shared = ("pool", "check", pool.path, "--data", tmp_path / "{name}.jsonl", "--base", llama_directory)
    code, out, err = glider(*shared, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [one["expert"] for one in told] == pool.names and {"gain", "routed", "lent", "hurts"} <= told[0].keys()
    code, out, _ = glider(*shared, "--rows", "2")
    assert (
        code == 0 and "experts to leave out, as rows are worse with them beyond chance: " in out and "e2: base " in out
    )
    code, _, err = glider("pool", "check", pool.path, "--data", "rows.jsonl", "--base", llama_directory)
    assert code == 2 and "{name}" in err


@pytest.mark.parametrize("command", ["check", "calibrate", "train-router"])
def test_all_experts_without_rows_are_told_at_once(glider, pool: Pool, tmp_path: Path, command: str) -> None:
    """It stopped at the first, and whoever had added its rows was told of the next."""
    (tmp_path / "e0.jsonl").write_text(json.dumps(rows_of("e0")[0].model_dump(exclude_none=True)) + "\n", "utf8")
    (tmp_path / "e2.jsonl").touch()
    router = ("--router", "vq") if command == "train-router" else ()
    split = () if command == "train-router" else ("--split", "val")
    code, _, err = glider("pool", command, pool.path, "--data", tmp_path / "{name}.jsonl", *router, *split)
    assert code == 2 and "2 experts without them (e1: no such file; e2: none)" in err and "e0" not in err
