"""Who has a place on a cluster: jobs give theirs to longer ones, and a run that has none says so."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from glider.contribute.build import PoolPlan, build_pool
from glider.errors import GliderWarning
from glider.experts.pool import Pool
from glider.jobs import ray_cluster
from glider.jobs.base import Executor, JobTick, silent
from glider.jobs.local import LocalExecutor
from glider.jobs.ray_cluster import Need, telling_of_no_node
from glider.jobs.ray_executor import RayExecutor

ray = pytest.importorskip("ray", reason="needs the extra ray")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and log files to the collector
    pytest.mark.filterwarnings("ignore:Tip.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
NAMES = ("one", "two", "three")
TENSORS = ("adapter_config.json", "adapter_model.safetensors", "glider.safetensors")


@pytest.fixture
def plan(tmp_path: Path, llama_directory: Path) -> Path:
    """A plan of three experts of equal length."""
    settings = {"rank": 2, "steps": 300, "gate_steps": 2, "batch_size": 4, "validation": 4, "learning_rate": 0.02}
    experts = [{"name": name, "data": f"{name}.jsonl"} for name in NAMES]
    for name in NAMES:
        rows = [json.dumps({"input": f"say {i}", "output": name[0]}) + "\n" for i in range(16)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows), "utf8")
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"base": str(llama_directory), "defaults": settings, "experts": experts}), "utf8")
    return path


def built(plan: Path, pool: Path, executor: Executor, report: JobTick = silent) -> dict[str, bytes]:
    ended = [
        (result.job.name, result.status)
        for result in build_pool(PoolPlan.read(plan), plan.parent, pool, executor, report)
    ]
    assert sorted(ended) == sorted((name, "done") for name in NAMES)
    return {f"{name}/{file}": (pool / name / file).read_bytes() for name in NAMES for file in TENSORS}


def test_experts_that_gave_way_are_those_of_the_local_executor(plan: Path, tmp_path: Path, add_node: Any):
    """Three equal experts on two nodes end together where each gives its place, and not one after two."""
    add_node(), add_node()
    told: list[tuple[str, str, float]] = []
    executor = RayExecutor(save_steps=100, margin=0.05)
    there = built(plan, tmp_path / "there", executor, lambda *word: told.append(word))
    moved = {name for name, text, _ in told if "waits for a longer one" in text}
    assert moved, told
    for name in moved:
        gave = next(place for place, word in enumerate(told) if word[0] == name and "waits" in word[1])
        after = next(word for word in told[gave + 1 :] if word[0] == name)
        assert after[2] >= told[gave][2] > 0, "it went on from its checkpoint"
    assert there == built(plan, tmp_path / "here", LocalExecutor())
    assert sorted(Pool.open(tmp_path / "there").names) == sorted(NAMES)


def test_no_job_gives_way_where_a_start_costs_more_than_is_gained(plan: Path, tmp_path: Path, add_node: Any):
    add_node(), add_node()
    told: list[str] = []
    built(plan, tmp_path / "pool", RayExecutor(save_steps=100), lambda name, text, share: told.append(text))
    assert not any("waits for a longer one" in text for text in told)


@pytest.fixture
def holder(add_node: Callable[[], Any]) -> Iterator[Any]:
    """Somebody else's actor that has all of the cluster's one CPU."""

    class Holder:
        pass

    add_node()
    actor = ray.remote(Holder).options(num_cpus=1).remote()
    ray.get(actor.__ray_ready__.remote())
    yield actor
    ray.kill(actor)


@pytest.mark.short
@pytest.mark.parametrize("command", ["generate", "build"])
def test_a_run_that_waits_for_room_says_so(
    command: str,
    plan: Path,
    tmp_path: Path,
    make_pool: Callable[..., Pool],
    llama_directory: Path,
    cluster: Any,
    holder: Any,
):
    """The place is given back only when the run has said that it waits for one."""
    words: list[Any] = ["pool", "build", plan, "--out", tmp_path / "pool"]
    if command == "generate":
        (tmp_path / "rows.jsonl").write_text('{"input": "say 1"}\n{"input": "say 2"}\n', "utf8")
        words = ["generate", "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "answers.jsonl"]
        words += ["--pool", make_pool(llama_directory).path, "--base", llama_directory, "--max-new-tokens", 4]
    words = [sys.executable, "-m", "glider", *words, "--executor", "ray", "--address", cluster.address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(map(str, words)), env=dict(os.environ), **pipes) as run:
        assert run.stderr is not None
        told: list[str] = []
        for line in run.stderr:
            told.append(line.strip())
            if "waiting for a node" in line:
                ray.kill(holder)
        run.communicate()
    assert run.returncode == 0, told
    (said,) = (line for line in told if "waiting for a node" in line)
    assert said == (
        "glider: waiting for a node with room for a job: wanted 1 CPU; the cluster has 2 nodes with 1 CPU (0 free)"
    )


def test_a_cluster_without_a_node_for_a_job_is_told_of(cluster: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_cluster, "_SILENCE", 0.2)
    monkeypatch.setattr(ray_cluster, "_LOOK", 0.1)
    while ray.cluster_resources().get("CPU", 0):  # nodes of tests before
        time.sleep(0.1)
    with (
        pytest.warns(GliderWarning, match="wanted 1 CPU and 2 GPU; the cluster has"),
        telling_of_no_node(ray, Need(1, 2)),
    ):
        time.sleep(2)
