"""Experts and cells made on a real cluster of several nodes on this machine: the same bytes, and nothing lost."""

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from glider.batch.answering import AnswerSettings
from glider.batch.ray_data import on_ray
from glider.batch.run import BatchRun
from glider.batch.run import here as answered_here
from glider.contribute.build import PoolPlan, build_pool
from glider.errors import ConfigError
from glider.evaluation.run_plan import RunPlan
from glider.evaluation.runs import Run
from glider.experts.pool import Pool
from glider.inference.spec import ModelSpec
from glider.jobs.base import Executor, JobResult, JobTick, silent
from glider.jobs.local import LocalExecutor
from glider.jobs.ray_executor import RayExecutor

ray = pytest.importorskip("ray", reason="needs the extra ray")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and log files to the collector
    pytest.mark.filterwarnings("ignore:Tip.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
LOCKS = (".pool.lock", ".writer.lock")
TENSORS = ("adapter_config.json", "adapter_model.safetensors", "glider.safetensors")
QUICK = {"rank": 2, "steps": 3, "gate_steps": 2, "batch_size": 4, "validation": 4, "learning_rate": 0.02}
NAMES = ("one", "two", "three", "four", "five", "six")


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

    def results(self, pool: Path, executor: Executor, report: JobTick = silent) -> Iterator[JobResult]:
        return build_pool(PoolPlan.read(self.path), self.root, pool, executor, report)

    def build(self, pool: Path, executor: Executor, report: JobTick = silent) -> dict[str, str]:
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


@pytest.mark.parametrize("round_", [pytest.param(0, marks=pytest.mark.short), 1])
def test_no_expert_is_lost_and_none_doubled_where_a_node_is_killed(
    round_: int, tmp_path: Path, six: tuple[Draft, dict[str, bytes]], add_node: Any, kill: Any
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


def test_a_training_goes_on_where_its_last_checkpoint_left_it(
    tmp_path: Path, llama_directory: Path, add_node: Any, kill: Any
):
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


ROWS = [
    {"input": f"is {i} even{'?' * i}", "output": ("yes", "no")[i % 2], "choices": ["yes", "no"], "split": "test"}
    for i in range(8)
]


@pytest.fixture
def make_run(make_pool: Callable[..., Pool], llama_directory: Path, tmp_path: Path) -> Callable[[str], Run]:
    """`make_run(out)`: three routers over two tasks, with results in that directory."""
    pool = make_pool(llama_directory)
    for name in ("even", "odd"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, ROWS)), "utf8")
    plan = {"pool": "pool", "base": str(llama_directory), "routers": ["base", "phatgoose", "oracle"]}
    plan["sets"] = {"near": {"tasks": ["*.jsonl"]}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(plan), "utf8")
    assert len(pool) == 3
    return lambda out: Run(RunPlan.read(tmp_path / "run.yaml"), tmp_path, tmp_path / out)


def scores(run: Run) -> dict[tuple[str, str, str], Any]:
    """Of every cell what does not depend on the time of day."""
    told = {}
    for key, cell in run.cells.items():
        content = cell.read()
        assert content is not None, key
        rows = [{**row, "seconds": 0} for row in content["results"]]
        told[key] = {**content, "results": rows, "seconds": 0}
    return told


@pytest.mark.short
def test_cells_on_a_cluster_are_those_made_here_though_a_node_dies(
    make_run: Callable[[str], Run], add_node: Any, kill: Any
):
    nodes = [add_node(), add_node()]
    here, there = make_run("here"), make_run("there")
    assert {result.status for result in here.go()} == {"done"}
    statuses = []
    for result in there.go(executor=RayExecutor(keep=True)):
        statuses.append(result.status)
        if len(statuses) == 2:
            kill(nodes[0])
            add_node()
    assert statuses == ["done"] * len(there.cells)
    assert scores(there) == scores(here)
    assert [result.status for result in there.go(executor=RayExecutor(keep=True))] == ["unchanged"] * len(there.cells)


def test_a_job_that_fails_tells_its_node_and_what_it_printed(
    tmp_path: Path, llama_directory: Path, add_node: Any, glider: Callable[..., tuple[int, str, str]]
):
    add_node()
    draft = Draft(tmp_path, llama_directory)
    (tmp_path / "one.jsonl").write_text(json.dumps({"input": "x" * 900, "output": "y"}), "utf8")  # beyond max_tokens
    code, out, err = glider("pool", "build", draft.path, "--out", tmp_path / "pool", "--executor", "ray")
    assert code == 1
    failed = next(line for line in out.splitlines() if "one" in line)
    assert "failed" in failed and f"(on node {socket.gethostname()} (" in failed
    assert "one on node" in err and "Traceback" in err and "DataError" in err
    assert Pool.open(tmp_path / "pool").names == ["two"]


@pytest.mark.short
def test_what_no_node_has_is_said_at_once(
    tmp_path: Path, llama_directory: Path, add_node: Any, glider: Callable[..., tuple[int, str, str]]
):
    add_node()
    command = ["pool", "build", Draft(tmp_path, llama_directory).path, "--out", tmp_path / "pool", "--executor", "ray"]
    code, _, err = glider(*command, "--gpus-per-job", "1", "--device", "cuda")
    assert code == 2 and "a node with 1 CPU and 1 GPU" in err and "none with a GPU" in err
    code, _, err = glider(*command, "--cpus-per-job", "3")
    assert code == 2 and "the largest with 1 CPU" in err
    code, _, err = glider(*command, "--device", "cuda")
    assert code == 2 and "--gpus-per-job 1" in err
    assert not (tmp_path / "pool" / "one").exists()


@pytest.mark.short
def test_a_second_driver_on_one_pool_is_told(tmp_path: Path, llama_directory: Path, add_node: Any):
    add_node()
    draft = Draft(tmp_path, llama_directory)
    first = draft.results(tmp_path / "pool", RayExecutor(files="path"))
    assert next(first).status == "done"
    with pytest.raises(ConfigError, match="another one at work"):
        next(draft.results(tmp_path / "pool", RayExecutor()))
    assert [result.status for result in first] == ["done"]


def test_a_driver_that_is_stopped_leaves_nothing_running_and_goes_on(
    tmp_path: Path, llama_directory: Path, cluster: Any, add_node: Any
):
    add_node(), add_node()
    draft = Draft(tmp_path, llama_directory, NAMES[:2], steps=400)
    command = [sys.executable, "-m", "glider", "pool", "build", draft.path, "--out", tmp_path / "pool"]
    command += ["--executor", "ray", "--checkpoint-steps", "20"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}  # as `ray job submit` sets it
    state = tmp_path / "pool" / ".making"
    for stop in (signal.SIGINT, signal.SIGKILL):
        before, pipes = files_of(state), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(list(map(str, command)), env=environment, **pipes) as driver:
            until(lambda before=before: files_of(state) - before)
            assert ray.available_resources().get("CPU", 0) < 2
            driver.send_signal(stop)
            _, err = driver.communicate(timeout=240)
        assert driver.returncode == (-signal.SIGKILL if stop == signal.SIGKILL else 130), err
        until(lambda: ray.available_resources().get("CPU", 0) == 2)
    begun = {name for name in NAMES[:2] if any(f".{name}.training" in path for path, _ in files_of(state))}
    seen: list[str] = []
    told = draft.build(tmp_path / "pool", RayExecutor(), lambda name, text, share: seen.append(f"{name} {text}"))
    assert set(told) == set(NAMES[:2]) and set(told.values()) <= {"done", "unchanged"}
    assert begun or "unchanged" in told.values()
    for name in begun:  # an expert that had come as far as its gates tells nothing of its LoRA any more
        first = next((line for line in seen if line.startswith(f"{name} lora ")), f"{name} lora 400/400")
        assert int(first.split()[2].split("/")[0]) > 20, seen
    draft.build(tmp_path / "here", LocalExecutor())
    assert content(tmp_path / "pool", NAMES[:2]) == content(tmp_path / "here", NAMES[:2])
    assert leftovers(tmp_path / "pool") == []


def files_of(directory: Path) -> set[tuple[str, int]]:
    """Checkpoints, each with its time."""
    return {(str(path), path.stat().st_mtime_ns) for path in directory.rglob("*.safetensors")}


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 240  # for machines that others use
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.short
def test_answers_on_a_cluster_are_those_made_here(
    tmp_path: Path,
    make_pool: Callable[..., Pool],
    llama_directory: Path,
    add_node: Any,
    glider: Callable[..., tuple[int, str, str]],
):
    add_node(), add_node()
    rows = [json.dumps({"input": f"say {i}" if i != 5 else "x" * 900}) for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), "utf8")
    pool = make_pool(llama_directory)
    command: list[Any] = ["generate", "--data", tmp_path / "rows.jsonl", "--pool", pool.path]
    command += ["--base", llama_directory]
    command += ["--max-new-tokens", 4, "--batch-size", 2]
    assert glider(*command, "--out", tmp_path / "here.jsonl")[0] == 1
    code, out, err = glider(*command, "--out", tmp_path / "there.jsonl", "--executor", "ray")
    assert code == 1 and "1 rows without an answer" in out, err
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    command[6] = tmp_path / "nowhere"
    code, _, err = glider(*command, "--out", tmp_path / "x.jsonl", "--executor", "ray")
    assert code == 2 and f"node {socket.gethostname()}" in err and "nowhere" in err and "Traceback" not in err


@pytest.mark.parametrize("left", [pytest.param(1, id="one-left"), pytest.param(0, id="another-comes")])
def test_answers_survive_the_death_of_a_node(
    left: int, tmp_path: Path, make_pool: Callable[..., Pool], llama_directory: Path, add_node: Any, kill: Any
):
    """Chunks that a dead node had are answered again, by the node that is left or by one that comes."""
    nodes = [add_node() for _ in range(left + 1)]
    rows = [json.dumps({"input": f"say {i}"}) for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), "utf8")
    spec = ModelSpec(pool=str(make_pool(llama_directory).path), base=str(llama_directory))
    settings = AnswerSettings(max_new_tokens=16, batch_size=2)
    ticks = []

    def tick(done: int, total: int) -> None:
        ticks.append(done)
        if done == 3:
            kill(nodes[0])
            if not left:
                add_node()

    here, there = (
        BatchRun(tmp_path / "rows.jsonl", tmp_path / f"{name}.jsonl", spec, settings, {}) for name in ("here", "there")
    )
    assert here.go(answered_here(spec, settings), lambda done, total: None) == "done"
    assert there.go(on_ray(RayExecutor(), spec, settings), tick) == "done"
    assert ticks == list(range(1, 31))
    assert there.out.read_bytes() == here.out.read_bytes()


def test_a_cluster_that_asks_for_a_token_is_told_of(tmp_path: Path, llama_directory: Path):
    """Ray shows its token by itself to clusters that it finds, and not to one at an address that is named."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    (tmp_path / "token").write_text(secrets.token_hex(32), "utf8")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH", "RAY_ADDRESS"))}
    plain |= {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    shown = {**plain, "RAY_AUTH_MODE": "token"}
    start = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus", "1"]
    start += ["--port", address.split(":")[1], "--include-dashboard", "false"]
    command = [sys.executable, "-m", "glider", "pool", "build", Draft(tmp_path, llama_directory, NAMES[:1]).path]
    command += ["--out", tmp_path / "pool", "--executor", "ray", "--address", address]
    with tempfile.TemporaryDirectory() as scratch:  # a short path: Ray's sockets lie there
        log, here = (tmp_path / "head.log").open("wb"), {"RAY_TMPDIR": scratch}
        with log, subprocess.Popen(start, env=shown | here, stdout=log, stderr=log) as head:
            try:
                until(lambda: b"started" in (tmp_path / "head.log").read_bytes())
                keys = {"capture_output": True, "text": True, "timeout": 120}
                without = subprocess.run(list(map(str, command)), env=plain | here, **keys)
                with_it = subprocess.run(list(map(str, command)), env=shown | here, **keys)
            finally:
                head.terminate()
    assert without.returncode == 2 and "Traceback" not in without.stderr, without.stderr
    told = without.stderr.splitlines()[-1]
    assert f"a Ray cluster at {address}" in told and "export RAY_AUTH_MODE=token" in told
    assert with_it.returncode == 0, with_it.stderr
