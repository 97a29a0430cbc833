"""Run files, the rows that they choose, and the table of a run."""

import json
import os
import sys
from pathlib import Path

import pytest

from glider.cli.main import main
from glider.errors import ConfigError, DataError, GliderError
from glider.evaluation.run_plan import RunPlan, matching
from glider.evaluation.run_table import table

from .run_files import EVEN, statuses, write


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


def test_a_file_whose_name_is_no_utf8_is_refused_where_a_pattern_finds_it(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text("{}\n")
    assert matching(tmp_path, Path("*.jsonl")) == [tmp_path / "sums.jsonl"]
    (tmp_path / os.fsdecode(b"\xff.jsonl")).write_text("{}\n")
    with pytest.raises(ConfigError, match=r"names in UTF-8 of the files of \*\.jsonl"):
        matching(tmp_path, Path("*.jsonl"))
