"""Experts and cells made on a real cluster of several nodes on this machine: the same bytes, and nothing lost."""

import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from glider.contribute.build import PoolPlan, build_pool
from glider.experts.pool import Pool
from glider.jobs.base import Executor, JobResult, Report, silent
from glider.jobs.local import LocalExecutor
from glider.jobs.ray_executor import RayExecutor

ray = pytest.importorskip("ray", reason="needs the extra ray")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and log files to the collector
    pytest.mark.filterwarnings("ignore:Tip.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
DEATHS = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}  # a killed node is dead in two seconds
LOCKS = (".pool.lock", ".writer.lock")
TENSORS = ("adapter_config.json", "adapter_model.safetensors", "glider.safetensors")
QUICK = {"rank": 2, "steps": 3, "gate_steps": 2, "batch_size": 4, "validation": 4, "learning_rate": 0.02}
NAMES = ("one", "two", "three", "four", "five", "six")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs nothing, and nodes that tests add; this process is the driver."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": DEATHS, **memory})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def add_node(cluster: Any) -> Iterator[Callable[[], Any]]:
    """`add_node()` adds a node of one CPU; all are gone at the end."""
    nodes = []

    def add() -> Any:
        node = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        nodes.append(node)
        return node

    yield add
    for node in nodes:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


class Draft:
    """A plan of tiny experts."""

    def __init__(self, root: Path, base: Path, names: Sequence[str] = NAMES[:2], **settings: Any):
        self.root = root
        self.plan: dict[str, Any] = {"base": str(base), "defaults": {**QUICK, **settings}, "experts": []}
        for name in names:
            rows = [json.dumps({"input": f"say {i}", "output": name[0]}) + "\n" for i in range(16)]
            (root / f"{name}.jsonl").write_text("".join(rows), "utf8")
            self.plan["experts"].append({"name": name, "data": f"{name}.jsonl"})
        self.path = root / "plan.yaml"
        self.path.write_text(yaml.safe_dump(self.plan), "utf8")

    def results(self, pool: Path, executor: Executor, report: Report = silent) -> Iterator[JobResult]:
        return build_pool(PoolPlan.read(self.path), self.root, pool, executor, report)

    def build(self, pool: Path, executor: Executor, report: Report = silent) -> dict[str, str]:
        told = {}
        for result in self.results(pool, executor, report):
            assert result.job.name not in told, "an expert ended twice"
            told[result.job.name] = f"{result.status} {result.message}".strip()
        return told


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path) -> tuple[Draft, dict[str, bytes]]:
    """A plan of six experts that take a second or two each, and what the local executor makes of it."""
    root = tmp_path_factory.mktemp("six")
    draft = Draft(root, llama_directory, NAMES, steps=250)
    assert set(draft.build(root / "here", LocalExecutor()).values()) == {"done"}
    return draft, content(root / "here", NAMES)


def content(pool: Path, names: Sequence[str]) -> dict[str, bytes]:
    return {f"{name}/{file}": (pool / name / file).read_bytes() for name in names for file in TENSORS}


def leftovers(pool: Path) -> list[str]:
    return [path.name for path in pool.iterdir() if path.name.startswith(".") and path.name not in LOCKS]


def test_experts_are_those_of_the_local_executor_to_the_bit(tmp_path: Path, llama_directory: Path, add_node: Any):
    add_node(), add_node()
    draft = Draft(tmp_path, llama_directory)
    assert draft.build(tmp_path / "here", LocalExecutor()) == {"one": "done", "two": "done"}
    seen: list[str] = []
    told = draft.build(tmp_path / "there", RayExecutor(), lambda name, text, share: seen.append(f"{name} {text}"))
    assert told == {"one": "done", "two": "done"}
    assert content(tmp_path / "there", ["one", "two"]) == content(tmp_path / "here", ["one", "two"])
    assert {line.split()[0] for line in seen} == {"one", "two"}
    assert leftovers(tmp_path / "there") == []
    pool = Pool.open(tmp_path / "there")
    pool.verify()
    assert pool.experts[0].card.training["resources"] == {"device": "cpu", "threads": 1}
    assert draft.build(tmp_path / "there", RayExecutor()) == {"one": "unchanged", "two": "unchanged"}
    assert draft.build(tmp_path / "there", LocalExecutor()) == {"one": "unchanged", "two": "unchanged"}


@pytest.mark.parametrize("round_", range(2))
def test_no_expert_is_lost_and_none_doubled_where_a_node_is_killed(
    round_: int, tmp_path: Path, six: tuple[Draft, dict[str, bytes]], add_node: Any
):
    """Six experts on two nodes, one of which is killed at a moment of chance; another one comes."""
    nodes = [add_node(), add_node()]
    draft, wanted = six
    chance = random.Random(round_)
    moment, killed = chance.randint(2, 8), nodes[chance.randint(0, 1)]
    seen: list[str] = []

    def report(name: str, text: str, share: float) -> None:
        seen.append(f"{name} {text}")
        if len(seen) == moment:
            kill(killed)
            add_node()

    told = draft.build(tmp_path / "pool", RayExecutor(save_steps=50), report)
    assert told == dict.fromkeys(NAMES, "done"), seen
    assert any("tried again" in line for line in seen)
    assert content(tmp_path / "pool", NAMES) == wanted
    assert sorted(Pool.open(tmp_path / "pool").names) == sorted(NAMES)
    assert leftovers(tmp_path / "pool") == []


def test_a_training_goes_on_where_its_last_checkpoint_left_it(tmp_path: Path, llama_directory: Path, add_node: Any):
    node = add_node()
    draft = Draft(tmp_path, llama_directory, NAMES[:1], steps=400)
    seen: list[str] = []

    def report(name: str, text: str, share: float) -> None:
        seen.append(text)
        if share > 0.5 and "lora" in text and node.all_processes:
            kill(node)
            add_node()

    assert draft.build(tmp_path / "pool", RayExecutor(save_steps=20), report) == {"one": "done"}
    again = next(place for place, text in enumerate(seen) if "tried again" in text)
    first = next(text for text in seen[again + 1 :] if text.startswith("lora"))
    assert int(first.split()[1].split("/")[0]) > 150, seen
    draft.build(tmp_path / "here", LocalExecutor())
    assert content(tmp_path / "pool", ["one"]) == content(tmp_path / "here", ["one"])


def kill(node: Any) -> None:
    """SIGKILL to every process of a node and to its workers."""
    processes = [process for kind in node.all_processes.values() for process in kind]
    pids = [info.process.pid for info in processes]
    pids += [child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.all_processes.clear()
