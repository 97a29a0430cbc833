"""The benchmark of LoraRetriever and LoRAuter: its published files become rows, a pool and a run; and the miniature."""

import gzip
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from glider.contribute.build import PoolPlan, build_pool
from glider.contribute.settings import RouterTraining
from glider.contribute.train_router import train_router
from glider.data.rows import read_rows
from glider.errors import ConfigError, DataError
from glider.evaluation.run_plan import RunPlan
from glider.evaluation.runs import Run
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel, load_base
from glider.jobs.local import LocalExecutor
from glider.routing.specification import router_from

FLAN = Path(__file__).parents[2] / "reproduce" / "flan"
KINDS = {"sst2": ("sentiment", "em"), "wmt16_translate_deen": ("translation", "bleu"), "dart": ("struct", "rouge")}


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flan_prepare", FLAN / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["flan_prepare"] = module
    spec.loader.exec_module(module)
    return module


prepare = _script()


def small(**changes: Any) -> Any:
    return prepare.Benchmark.read().model_copy(update={"tasks": 3, "domains": 3, "max_new_tokens": 2, **changes})


def published(clone: Path, change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> Path:
    """Files in the published fields, made up."""
    rows = [
        {"inputs": f"Is {task} {i} good?", "targets": "yes", "task": task, "domain": domain, "metric": metric}
        for task, (domain, metric) in KINDS.items()
        for i in range(3)
    ]
    pairs = [{"inputs": f"sample {i}", "targets": "yes"} for i in range(20)]
    samples = [{"model_name": task, "domain": domain, "sample": pairs} for task, (domain, _) in KINDS.items()]
    for place, told in ((prepare.ROWS, [change(row) for row in rows]), (prepare.SAMPLES, samples)):
        (clone / place).parent.mkdir(parents=True, exist_ok=True)
        (clone / place).write_text(json.dumps(told), "utf8")
    return clone


def test_the_benchmark_is_the_published_one() -> None:
    told = prepare.Benchmark.read()
    assert (told.tasks, told.domains, told.base) == (48, 10, "meta-llama/Llama-2-7b-hf")
    assert told.adapters.format(task="sst2") == "Styxxxx/llama2_7b_lora-sst2"
    for plan in told.routers:
        router = plan if isinstance(plan, str) else plan["router"]
        settings = {} if isinstance(plan, str) else plan.get("settings", {})
        router_from(router.replace("{task}", "sst2"), settings)


def test_rows_samples_and_a_run_are_laid_out(tmp_path: Path) -> None:
    tasks = prepare.lay_out(small(), published(tmp_path / "clone"), tmp_path / "work")
    assert tasks == {task: domain for task, (domain, _) in KINDS.items()}
    rows = read_rows(tmp_path / "work" / "tasks" / "dart.jsonl", "test")
    assert [(row.input, row.output) for row in rows] == [(f"Is dart {i} good?", "yes") for i in range(3)]
    assert len(read_rows(tmp_path / "work" / "samples" / "sst2.jsonl")) == 20
    run = RunPlan.read(tmp_path / "work" / "run.yaml")
    metrics = {task.name: task.metric for task in run.tasks(tmp_path / "work")}
    assert metrics == {"sst2": "exact_match", "wmt16_translate_deen": "bleu", "dart": "rougeL"}
    assert run.max_new_tokens == 2 and set(run.sets) == {"sentiment", "translation", "struct"}


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda row: {name: row[name] for name in row if name != "domain"}, "no domain"),
        (lambda row: row | {"targets": 3}, "no targets"),
        (lambda row: row | {"metric": "chrf"}, "chrf"),
        (
            lambda row: row | {"metric": "em" if row["inputs"].endswith("0 good?") else "bleu"},
            "one metric and one domain",
        ),
        (lambda row: row | {"task": "sst2", "domain": "d", "metric": "em"}, "3 tasks in 3 domains"),
        (lambda row: row | {"task": row["task"] + "_ii"}, "samples of every task"),
    ],
)
def test_other_files_are_told(tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], got: str) -> None:
    with pytest.raises(DataError, match=got):
        prepare.lay_out(small(), published(tmp_path / "clone", change), tmp_path / "work")


NO_ROWS = ("<html>", "{}", "[]", "[1]", "[" * 3000, '[{"inputs": NaN}]', '[{"inputs": "\\ud800"}]')


@pytest.mark.parametrize("content", NO_ROWS)
def test_what_is_no_list_of_rows_is_told(tmp_path: Path, content: str) -> None:
    clone = published(tmp_path / "clone")
    for place in (prepare.ROWS, prepare.SAMPLES):
        whole = (clone / place).read_text("utf8")
        (clone / place).write_text(content, "utf8")
        with pytest.raises(DataError, match="Clone the published repository anew"):
            prepare.lay_out(small(), clone, tmp_path / "work")
        (clone / place).write_text(whole, "utf8")


@pytest.mark.parametrize(
    ("entry", "got"),
    [
        ({"sample": [{"inputs": 3, "targets": "yes"}]}, "int in place of a text"),
        ({"sample": [{"inputs": "x", "targets": None}]}, "NoneType in place of a text"),
        ({"sample": ["x"]}, "TypeError"),
        ({"sample": 3}, "TypeError"),
        ({"model_name": ["sst2"]}, "list in place of a text"),
        ({"model_name": "..."}, "names with a letter"),
    ],
)
def test_samples_of_another_form_are_told(tmp_path: Path, entry: dict[str, Any], got: str) -> None:
    """A number in place of a text was a traceback, and a name of dots a file without a name."""
    clone = published(tmp_path / "clone")
    samples = json.loads((clone / prepare.SAMPLES).read_text("utf8"))
    (clone / prepare.SAMPLES).write_text(json.dumps([samples[0] | entry, *samples[1:]]), "utf8")
    with pytest.raises(DataError, match=got):
        prepare.lay_out(small(), clone, tmp_path / "work")


@pytest.mark.parametrize("content", ["[", "- 1", "tasks: many", "a: &a [*a]", "pipe"])
def test_a_benchmark_of_another_form_is_told(tmp_path: Path, content: str) -> None:
    """It was a traceback; a pipe was waited for without end."""
    config = tmp_path / "benchmark.yaml"
    if content == "pipe":
        os.mkfifo(config)
    else:
        config.write_text(content)
    with pytest.raises(ConfigError, match=r"benchmark\.yaml"):
        prepare.Benchmark.read(config)


@pytest.mark.slow
def test_published_adapters_become_a_pool_that_every_router_runs_on(
    tmp_path: Path, llama_directory: Path, random_expert: Callable[..., Any]
) -> None:
    base = load_base(str(llama_directory))
    for i, task in enumerate(KINDS):
        random_expert(tmp_path / "adapters" / task, base, seed=i, gates=False)
    benchmark = small(base=str(llama_directory), adapters=f"{tmp_path / 'adapters'}/{{task}}")
    work = tmp_path / "work"
    tasks = prepare.lay_out(benchmark, published(tmp_path / "clone"), work)
    for _ in range(2):  # the second finds all of it there
        prepare.make_pool(benchmark, tasks, work, "cpu")
    pool = Pool.open(work / "pool")
    assert set(pool.names) == set(KINDS)
    assert {expert.card.prompt.template for expert in pool} == {benchmark.template}
    assert all(expert.profile is not None and expert.profile.inputs is not None for expert in pool)
    train_both(base, pool, {name: work / "samples" / f"{name}.jsonl" for name in pool.names})
    run = Run(RunPlan.read(work / "run.yaml"), work, tmp_path / "out")
    faults = [result.message for result in run.go() if result.status == "failed"]
    assert faults == [] and all(cell.read() for cell in run.cells.values())
    assert len(run.cells) == 3 * len(benchmark.routers)


def train_both(base: BaseModel, pool: Pool, files: dict[str, Path]) -> None:
    """The two signals that are learnt of rows."""
    rows = {name: read_rows(file)[:16] for name, file in files.items()}
    for router in ("lorauter", "ariadne"):
        pool = train_router(base, pool, router, rows, RouterTraining(rows=8))


def test_the_miniature_has_the_benchmarks_routers(tmp_path: Path) -> None:
    told = yaml.safe_load((FLAN / "mini.yaml").read_text("utf8"))
    labels = {plan if isinstance(plan, str) else plan.get("name") for plan in told["routers"]}
    full = {plan if isinstance(plan, str) else plan.get("name") for plan in prepare.Benchmark.read().routers}
    assert {str(name).removesuffix("+arrow") for name in full} - {"merge"} <= labels
    experts = yaml.safe_load((FLAN / "mini-pool.yaml").read_text("utf8"))["experts"]
    held_in = {Path(task).name for task in told["sets"]["held-in"]["tasks"]}
    assert held_in == {Path(expert["data"]).name for expert in experts}
    assert not held_in & {Path(task).name for task in told["sets"]["held-out"]["tasks"]}


@pytest.mark.slow
def test_a_tiny_run_of_the_miniature_on_its_own_rows(tmp_path: Path, llama_directory: Path, shared: Path) -> None:
    """Random weights, a step, two rows a task: every router has a number, which means nothing."""
    (tmp_path / "tasks").mkdir()
    told = yaml.safe_load((FLAN / "mini-pool.yaml").read_text("utf8"))
    run = yaml.safe_load((FLAN / "mini.yaml").read_text("utf8"))
    names = {Path(task).name for one in run["sets"].values() for task in one["tasks"]}
    for name in names:
        with gzip.open(shared / "data" / "tasks" / "flan_extra" / name, "rt", encoding="utf8") as file:
            kept = sorted(file, key=len)  # short rows
        parts = {split: [line for line in kept if f'"split": "{split}"' in line] for split in ("train", "val", "test")}
        text = "".join(parts["train"][:40] + parts["val"][:20] + parts["test"][:4])
        (tmp_path / "tasks" / name).write_bytes(gzip.compress(text.encode()))
    few = {"rank": 2, "steps": 1, "gate_steps": 1, "batch_size": 2, "validation": 20, "validations": 1}
    few |= {"max_tokens": 1000, "precision": "float32"}
    told |= {"base": str(llama_directory), "defaults": {**told["defaults"], **few}}
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(told), "utf8")
    results = list(build_pool(PoolPlan.read(tmp_path / "pool.yaml"), tmp_path, tmp_path / "pool", LocalExecutor()))
    assert [result.message for result in results if result.status != "done"] == []
    pool = Pool.open(tmp_path / "pool")
    files = {name: tmp_path / "tasks" / f"{name}.jsonl.gz" for name in pool.names}
    train_both(load_base(str(llama_directory)), pool, files)
    for one in run["sets"].values():
        one["rows"] = 2
    plan = RunPlan.parse(**run | {"base": str(llama_directory), "max_new_tokens": 2})
    made = Run(plan, tmp_path, tmp_path / "out")
    ended = {result.status for result in made.go()}
    assert ended == {"done", "absent"}  # a held-out task has no expert of its own
