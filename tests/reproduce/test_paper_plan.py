"""The full reproduction's configs say what was published, and its estimates are what the formulas give by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fullrun import plan as plan_module
from fullrun.dry_run import plan_json
from fullrun.estimate import (
    T5_XL,
    Assumptions,
    data_gb,
    download_gb,
    hours_of,
    memory_gb,
    pool_gb,
    rows_of,
    set_gb,
    tokens_of,
    tokens_of_row,
)
from fullrun.plan import BigBenchSource, P3Source, Plan, config_names, read_plan
from glider.contribute.published_format import T0_TASKS
from glider.errors import ConfigError
from glider.routing.specification import router_from
from run import WORK, parser, place_of

SCRIPT = Path(__file__).parents[2] / "reproduce" / "paper" / "run.py"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan(["all"])


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GLIDER_CACHE_MB": "0"})


def test_the_sets_are_those_published(plan: Plan) -> None:
    parts = ("bbl-at-100", "figure2-heldin", "figure2-heldout")
    counts = {name: len(tasks.tasks) for name, tasks in plan.sets.items() if name not in parts}
    assert counts == {"t0-heldin": 35, "t0-heldout": 11, "bbh": 22, "bbl": 17}
    assert set(plan.sets["t0-heldin"].tasks) == set(T0_TASKS) - {"p3cose"}
    assert "bbdycklanguages" not in plan.sets["bbh"].tasks
    assert set(plan.sets["bbh"].tasks) & set(plan.sets["bbl"].tasks) == {"bbformalfallacies", "bblogicaldeduction"}
    assert plan.pools["t0"].experts == 35 and plan.pools["flan"].experts == 166


def published(plan: Plan, table: str) -> dict[str, list[float | None]]:
    rows: dict[str, list[float | None]] = {}
    for cell in plan.cells:
        if cell.config.startswith(table) and cell.config != "table1/glider-by-hand":
            rows.setdefault(cell.config.partition("/")[2] if table == "table1" else cell.label, []).append(
                cell.published
            )
    return rows


def test_every_published_number_is_there(plan: Plan) -> None:
    """GLIDER is in Table 1 twice, by the formula and by hand; Table 3's 35.39 is Table 1's 35.29."""
    assert published(plan, "table1") == {
        "oracle": [69.60, 51.60, 34.90, 36.60, 38.90, 45.40],
        "multitask": [55.90, 51.60, 34.90, 36.60, 38.90, 45.40],
        "merge": [30.73, 45.40, 35.30, 36.00, 34.60, 34.00],
        "arrow": [39.84, 55.10, 33.60, 34.50, 30.60, 29.60],
        "phatgoose": [61.42, 56.90, 34.90, 37.30, 35.60, 35.20],
        "lorahub": [31.90, 46.85, 31.35, 31.18, 34.50, 30.54],
        "glider": [68.04, 57.78, 35.29, 37.46, 35.07, 35.52],
    }
    assert published(plan, "table2") == {
        "alpha-1": [62.20, 57.04, 35.05, 37.79],
        "alpha-3": [63.40, 57.78, 35.29, 37.46],
        "alpha-10": [65.52, 57.98, 34.80, 37.04],
        "alpha-100": [68.04, 53.22, 31.73, 34.97],
        "alpha-1000": [66.88, 52.91, 30.71, 34.31],
        "alpha-3000": [66.69, 52.37, 30.03, 33.24],
    }
    assert published(plan, "table3") == {
        "top-1": [67.96, 56.07, 33.91, 35.82],
        "top-2": [68.04, 57.78, 35.39, 37.46],
        "top-3": [68.06, 57.52, 35.08, 38.55],
        "top-25": [67.98, 56.53, 34.10, 36.32],
        "top-50": [67.95, 57.25, 35.07, 37.49],
        "top-75": [68.02, 57.86, 35.38, 38.65],
    }


def test_a_printed_command_keeps_its_results(plan: Plan) -> None:
    for cell in plan.cells:
        _, script, *arguments = cell.command.split()
        assert script == "reproduce/paper/run.py"
        told = parser().parse_args(arguments)
        assert (told.device, place_of(told, Path("gone"))) == ("cuda", WORK.absolute())
    assert place_of(parser().parse_args(["all", "--tiny"]), Path("/gone")) == Path("/gone")


def test_every_router_exists_with_its_settings(plan: Plan) -> None:
    for cell in plan.cells:
        if cell.method.router not in ("oracle", "lorahub"):
            router_from(cell.method.router.replace("{task}", "p3agnews"), cell.method.settings)


def test_p3_configs_are_named_as_on_the_hub(plan: Plan) -> None:
    names = {
        source.config(part, template)
        for tasks in plan.sets.values()
        for source in tasks.tasks.values()
        if isinstance(source, P3Source)
        for part in source.parts
        for template in source.templates
    }
    assert {"social_i_qa_Generate_answer", "anli_GPT_3_style_r2", "super_glue_wsc.fixed_p_is_are_r"} <= names
    assert {"paws_labeled_final_Rewrite", "cnn_dailymail_3.0.0_news_card_view", "glue_qqp_same_thing"} <= names
    assert all(name.replace(".", "").isidentifier() for name in names)


def test_the_estimate_by_hand(plan: Plan) -> None:
    # an encoder block: 4 * 2048^2 + 3 * 2048 * 5120 = 48,234,496; a decoder block: 16,777,216 more
    blocks = 24 * (48_234_496 + 65_011_712 + 5 * 2048)
    assert T5_XL.base_parameters == blocks + 2 * 32128 * 2048 + 2 * 32 * 32 + 2 * 2048 == 2_849_757_184
    # encoder 4 * 16 * 4096 + 3 * 16 * 7168 = 606,208; decoder 868,352
    assert T5_XL.lora_parameters == 24 * (606_208 + 868_352) == 35_389_440
    # encoder 6 * 2048 + 5120; decoder 10 * 2048 + 5120
    assert T5_XL.gate_parameters == 24 * (17_408 + 25_600) == 1_032_192
    t0 = plan.pools["t0"]
    assert memory_gb(t0, Assumptions()) == pytest.approx(4 * (2.849757184 + 35 * 0.036421632) + 4)
    assert memory_gb(t0, Assumptions(dtype="bfloat16", activations_gb=1)) == pytest.approx(9.249, abs=1e-3)
    assert download_gb(t0) == pytest.approx(4 * (2.849757184 + 35 * (0.036421632 + 0.131596288)))


def test_the_disk_by_hand(plan: Plan) -> None:
    t0 = plan.pools["t0"]
    assert pool_gb(t0) == pytest.approx(4 * 35 * 0.036421632)
    heldin, heldout = plan.sets["t0-heldin"], plan.sets["t0-heldout"]
    cb = heldout.tasks["p3cb"]  # fifteen templates of P3, a file each: texts, and token ids beside them
    assert data_gb(cb, 56) == pytest.approx(15 * 56 * 8.5 * (cb.assumed.input + cb.assumed.target) / 1e9)
    ropes = heldin.tasks["p3ropes"]  # rendered here: one file of texts
    assert data_gb(ropes, 100) == pytest.approx(100 * 4.5 * 274 / 1e9)
    assert set_gb(heldout) == pytest.approx(sum(data_gb(task, task.available) for task in heldout.tasks.values()))
    told = plan_json(plan.chosen(method="phatgoose", pool="t0", set_name="t0-heldin"), Assumptions())
    expected = download_gb(t0) + pool_gb(t0) + set_gb(heldin)
    assert told["disk_gb"] == pytest.approx(expected, abs=0.2) and set_gb(heldin) > 1


def test_rows_and_tokens_by_hand(plan: Plan) -> None:
    rows = {name: rows_of(tasks, task) for tasks in plan.sets.values() for name, task in tasks.tasks.items()}
    assert rows["p3socialiqa"] == 1954 - 390  # a fifth is held back
    assert rows["p3agnews"] == 2000
    assert rows["p3appreviews"] == 2000  # of 10000 - 2000 - 5
    assert rows["p3hswag"] == 4 * 2000 and rows["p3cb"] == 15 * 56
    assert rows["p3storycloze"] == 5 * (1871 - 5)
    assert rows["bbbooleanexpressions"] == 250 - 5
    assert tokens_of_row(plan.sets["t0-heldin"].tasks["p3socialiqa"]) == 48 + 3 * 5
    assert tokens_of_row(plan.sets["t0-heldin"].tasks["p3ropes"]) == 272 + 2
    cells = {(cell.config, cell.set): cell for cell in plan.cells if cell.pool == "t0"}
    bbl = plan.sets["bbl"]
    once = tokens_of(cells["table1/glider", "bbl"], bbl, 35)
    assert once == sum(rows_of(bbl, task) * tokens_of_row(task) for task in bbl.tasks.values())
    assert tokens_of(cells["table1/oracle", "bbl"], bbl, 35) == 35 * once
    few = sum(5 * (task.assumed.input + task.assumed.target) for task in bbl.tasks.values())
    assert tokens_of(cells["table1/lorahub", "bbl"], bbl, 35) == once + 40 * few
    assert hours_of(7.2e6, Assumptions(throughput=1000)) == 2 and hours_of(7.2e6, Assumptions()) is None


@pytest.mark.parametrize("value", [0, -3, float("nan"), float("inf")])
def test_a_throughput_that_gives_no_hours_is_refused(value: float) -> None:
    """0 was a traceback, and a negative one gave negative hours."""
    with pytest.raises(ConfigError, match="throughput"):
        Assumptions.parse(throughput=value)


@pytest.mark.parametrize("config", [*config_names(), "all"])
def test_the_dry_run_tells_everything(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    from fullrun.dry_run import print_plan

    plan = read_plan([config])
    print_plan(plan, Assumptions(throughput=5000))
    said = capsys.readouterr().out
    assert "has not been made" in said and "Assumed" in said and "5000 tokens/s" in said
    for training in plan.trainings:
        assert training.command in said and training.title in said and training.base in said
    if config == "all":
        assert {name.partition("/")[0] for name in config_names()} == {"figures", "table1", "table2", "table3", "train"}
        assert {cell.config for cell in plan.cells} | {one.config for one in plan.trainings} == set(config_names())
    for cell in plan.cells:
        assert cell.command in said and plan.pools[cell.pool].base in said
        assert cell.published is None or f"published {cell.published:.2f}" in said
        assert all(f"  {task}: " in said for task in plan.sets[cell.set].tasks)
    told = plan_json(plan, Assumptions(throughput=5000))
    assert all(cell["hours"] == pytest.approx(cell["tokens"] / 1.8e7) for cell in told["cells"])


def test_the_tasks_that_were_published_at_alpha_100_are_cells(plan: Plan) -> None:
    """They stood at alpha 3 with the rest, where the published BIG-bench Lite has them at 100."""
    by_hand = [cell for cell in plan.cells if cell.set == "bbl-at-100"]
    assert {(cell.config, cell.pool, cell.method.settings["beta"]) for cell in by_hand} == {
        ("table1/glider-by-hand", pool, 100.0) for pool in ("t0", "flan")
    }
    tasks = plan.sets["bbl-at-100"].tasks
    assert sorted(task.name for task in tasks.values() if isinstance(task, BigBenchSource)) == [
        "bbq_lite_json",
        "strange_stories",
    ]
    assert all(task == plan.sets["bbl"].tasks[name] for name, task in tasks.items())


def test_the_figures_are_planned_as_the_paper_has_them(plan: Plan) -> None:
    cells = [cell for cell in plan.cells if cell.figure is not None]
    second = {(cell.label, cell.set) for cell in cells if cell.config == "figures/figure2"}
    assert second == {
        (router, f"figure2-{kind}") for router in ("glider", "phatgoose") for kind in ("heldin", "heldout")
    }
    shown = {name for kind in ("heldin", "heldout") for name in plan.sets[f"figure2-{kind}"].tasks}
    assert shown == {"p3commongen", "p3paws", "p3copa", "p3storycloze"}
    third = [cell for cell in cells if cell.config == "figures/figure3"]
    assert [cell.set for cell in third] == ["t0-heldin", "t0-heldout", "bbh", "bbl"]
    assert all(tokens_of(cell, plan.sets[cell.set], 35) == 0 for cell in third)  # no pass of the model
    heldin = plan.sets["figure2-heldin"]
    cell = next(cell for cell in cells if cell.set == "figure2-heldin")
    assert tokens_of(cell, heldin, 35) == sum(64 * task.assumed.input for task in heldin.tasks.values())


def test_a_part_of_a_set_that_does_not_exist_is_named(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("part_of: bbl\ntasks: [bbl]\n")
    with pytest.raises(ConfigError, match=r"part\.yaml.*bbl"):
        plan_module._read_sets([tmp_path / "part.yaml"])


def test_one_command_names_one_cell() -> None:
    ran = run("table1/glider", "--method", "glider", "--pool", "flan", "--set", "bbl", "--dry-run", "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert [(cell["pool"], cell["set"], cell["published"]) for cell in told["cells"]] == [("flan", "bbl", 35.52)]
    assert told["cells"][0]["hours"] is None


def test_faults_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="table1/glider"):
        read_plan(["table1/gilder"])
    with pytest.raises(ConfigError, match="glider/t0/t0-heldin"):
        read_plan(["table1/glider"]).chosen(pool="t0-3b")
    ran = run("table9", "--dry-run")
    assert ran.returncode == 2 and "Check the spelling" in ran.stderr and "Traceback" not in ran.stderr
    for name in ("sets", "table1"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(plan_module, "HERE", tmp_path)
    (tmp_path / "pools.yaml").write_text("pools: {t0: {base: b, experts: 3, checkpiont: x}}")
    with pytest.raises(ConfigError, match="checkpiont"):
        read_plan([])
    (tmp_path / "pools.yaml").write_text("pools: {t0: {base: b, experts: 3}}")
    with pytest.raises(ConfigError, match="a checkpoint for experts"):
        read_plan([])
    (tmp_path / "pools.yaml").write_text("pools: {}")
    method = {"router": "base", "cells": {"t1": {"bbx": None}}}
    (tmp_path / "table1" / "one.yaml").write_text(yaml.safe_dump({"title": "one", "methods": {"m": method}}))
    with pytest.raises(ConfigError, match="bbx, t1"):
        read_plan(["table1/one"])
