"""A plan becomes a pool: what is missing is made, what is there stays, and an interruption changes no byte."""

import json
import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from glider.cli.main import main
from glider.contribute import build
from glider.contribute.build import ExpertJob, PoolPlan, build_pool
from glider.errors import ConfigError
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.spec import BaseSpec
from glider.jobs.base import Attempt, Executor, JobTick, attempt
from glider.jobs.local import LocalExecutor, Worker
from glider.jobs.run import run_jobs

LOCKS = (".pool.lock", ".writer.lock")
TENSORS = ("adapter_config.json", "adapter_model.safetensors", "glider.safetensors")
QUICK = {"rank": 2, "steps": 3, "gate_steps": 2, "batch_size": 4, "validation": 4, "learning_rate": 0.02}


class AllAtOnce:
    """Runs every job before it tells of the first, as workers that are faster than their pool do."""

    def run(self, jobs: Sequence[ExpertJob], report: JobTick) -> Iterator[Attempt]:
        yield from [attempt(job, report) for job in jobs]


class Draft:
    """A directory with rows, an adapter and a plan that tests change."""

    def __init__(self, root: Path, base: Path):
        self.root, self.pool = root, root / "pool"
        self.plan: dict[str, Any] = {"base": str(base), "defaults": dict(QUICK), "experts": []}

    def rows(self, name: str, answer: str = "x", rows: int = 16) -> str:
        lines = [json.dumps({"input": f"say {i}", "output": answer}) + "\n" for i in range(rows)]
        (self.root / f"{name}.jsonl").write_text("".join(lines), "utf8")
        return f"{name}.jsonl"

    def write(self) -> Path:
        (self.root / "pool.yaml").write_text(yaml.safe_dump(self.plan), "utf8")
        return self.root / "pool.yaml"

    def build(self, executor: Executor = LocalExecutor(), report: JobTick = lambda *line: None) -> dict[str, str]:  # noqa: B008
        """Statuses by name; a failure says why."""
        plan = PoolPlan.read(self.write())
        results = build_pool(plan, self.root, self.pool, executor, report)
        return {result.job.name: f"{result.status} {result.message}".strip() for result in results}

    def bytes_of(self, name: str, files: Sequence[str] = TENSORS) -> dict[str, bytes]:
        return {file: (self.pool / name / file).read_bytes() for file in files}

    def state(self) -> dict[str, tuple[bytes, int]]:
        files = [file for file in self.pool.rglob("*") if file.is_file() and file.name in (*EXPERT_FILES, "pool.json")]
        return {str(file.relative_to(self.pool)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    def leftovers(self) -> list[str]:
        return [path.name for path in self.pool.iterdir() if path.name.startswith(".") and path.name not in LOCKS]


@pytest.fixture
def draft(tmp_path: Path, llama_directory: Path) -> Draft:
    """A plan of two experts to train, `one` and `two`."""
    draft = Draft(tmp_path, llama_directory)
    for name in ("one", "two"):
        draft.plan["experts"].append({"name": name, "data": draft.rows(name, answer=name[0])})
    return draft


@pytest.fixture
def adapter(tmp_path: Path, llama_directory: Path) -> Path:
    """A PEFT adapter beside the plan, in `lora`."""
    torch.manual_seed(0)
    settings = LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(load_base(str(llama_directory)).model, settings).save_pretrained(
        str(tmp_path / "lora"), save_embedding_layers=False
    )
    return tmp_path / "lora"


@pytest.fixture
def glider(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """`glider("pool", "build", ...)` runs the command in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["glider", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code if isinstance(ended.value.code, int) else 0, captured.out, captured.err

    return run


def faults(draft: Draft) -> str:
    with pytest.raises(ConfigError) as raised:
        PoolPlan.read(draft.write())
    return str(raised.value)


def test_every_fault_of_the_form_is_named(draft: Draft):
    draft.plan["experts"] = [{"name": "../x", "data": "a"}, {"data": "b"}, {"name": "c", "flavour": "sweet"}]
    told = faults(draft)
    for part in ("experts.0.name", "experts.1.name", "experts.2.flavour", "pool.yaml"):
        assert part in told


def test_every_fault_of_the_settings_is_named(draft: Draft):
    draft.plan["experts"] = [
        {"name": "a", "data": "x", "config": {"rank": -1, "steps": "many"}},
        {"name": "b", "data": "x", "config": {"colour": "red"}},
        {"name": "c"},
        {"name": "d", "data": "x"},
        {"name": "d", "data": "y"},
    ]
    told = faults(draft)
    for part in ("a: rank", "steps", "b: colour", "c: neither data nor adapter", "d twice"):
        assert part in told


@pytest.mark.parametrize("content", ["", "[1, 2]", "experts: []", "base: [", "experts: {a: 1}", "\x00", "a: *b"])
def test_what_is_no_plan_is_named(tmp_path: Path, content: str):
    (tmp_path / "pool.yaml").write_text(content, "utf8")
    with pytest.raises(ConfigError, match=r"pool\.yaml"):
        PoolPlan.read(tmp_path / "pool.yaml")


def test_an_absent_plan_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere"):
        PoolPlan.read(tmp_path / "nowhere.yaml")


def test_a_plan_runs_no_code(tmp_path: Path):
    (tmp_path / "pool.yaml").write_text(f"experts: !!python/object/apply:os.mkdir [{tmp_path}/made]", "utf8")
    with pytest.raises(ConfigError):
        PoolPlan.read(tmp_path / "pool.yaml")
    assert not (tmp_path / "made").exists()


def test_experts_are_trained_imported_and_given_gates(draft: Draft, adapter: Path):
    description = "Say the first letter."
    draft.plan["experts"] = [
        {"name": "trained", "data": "one.jsonl", "task": "letters", "licence": "CC0-1.0"},
        {"name": "imported", "adapter": "lora"},
        {"name": "both", "adapter": "lora", "data": "two.jsonl", "description": description},
    ]
    assert draft.build() == {"trained": "done", "imported": "done", "both": "done"}
    pool = Pool.open(draft.pool)
    pool.verify()
    assert pool.names == ["trained", "imported", "both"]
    gates = {expert.name: {site.has_gate for site in expert.sites.values()} for expert in pool}
    assert gates == {"trained": {True}, "imported": {False}, "both": {True}}
    assert (pool["trained"].card.task, pool["trained"].card.licence) == ("letters", "CC0-1.0")
    assert pool["both"].card.description == description
    assert pool["both"].instruction is not None and pool["imported"].instruction is None
    for name in ("imported", "both"):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (draft.pool / name / file).read_bytes() == (adapter / file).read_bytes()
    assert draft.leftovers() == []


def test_settings_of_an_expert_go_before_the_defaults(draft: Draft):
    draft.plan["experts"][1]["config"] = {"rank": 3, "minutes": 5}
    draft.build()
    configs = [expert.card.training["config"] for expert in Pool.open(draft.pool)]
    assert [config["rank"] for config in configs] == [2, 3]
    assert [config["minutes"] for config in configs] == [None, 5]


def test_nothing_is_done_twice(draft: Draft):
    draft.build()
    before = draft.state()
    assert draft.build() == {"one": "unchanged", "two": "unchanged"}
    assert draft.state() == before


@pytest.mark.parametrize("change", ["rows", "settings", "description"])
def test_only_the_expert_that_changed_is_made_again(draft: Draft, change: str):
    draft.build()
    before, one = draft.state(), draft.bytes_of("one")
    if change == "rows":
        draft.rows("two", answer="z")
    elif change == "settings":
        draft.plan["experts"][1]["config"] = {"rank": 3}
    else:
        draft.plan["experts"][1]["description"] = "Say t."
    assert draft.build() == {"one": "unchanged", "two": "done"}
    after = draft.state()
    assert {name for name in after if after[name] != before[name]} <= {
        "pool.json",
        *(f"two/{file}" for file in EXPERT_FILES),
    }
    assert after["two/card.json"] != before["two/card.json"]
    assert draft.bytes_of("one") == one
    Pool.open(draft.pool).verify()
    assert draft.build() == {"one": "unchanged", "two": "unchanged"}


def test_a_changed_adapter_is_imported_again(draft: Draft, adapter: Path, edit_tensors: Callable[..., None]):
    draft.plan["experts"] = [{"name": "ex", "adapter": "lora"}]
    draft.build()
    edit_tensors(adapter / "adapter_model.safetensors", lambda tensors: next(iter(tensors.values())).add_(1))
    assert draft.build() == {"ex": "done"}
    copied = (draft.pool / "ex" / "adapter_model.safetensors").read_bytes()
    assert copied == (adapter / "adapter_model.safetensors").read_bytes()
    Pool.open(draft.pool).verify()


def test_an_expert_whose_files_changed_is_not_called_unchanged(draft: Draft):
    """A rotten file would otherwise join the pool with a fresh hash, as if it had been trained so."""
    draft.build()
    sound = draft.bytes_of("two")
    file = draft.pool / "two" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    told = draft.build()
    assert told["one"] == "unchanged" and told["two"] != "unchanged"
    if told["two"] == "done":
        assert draft.bytes_of("two") == sound


def test_a_new_entry_is_added_and_the_others_stay(draft: Draft):
    draft.build()
    before = draft.state()
    draft.plan["experts"].insert(0, {"name": "new", "data": draft.rows("new")})
    told = draft.build()
    assert told == {"new": "done", "one": "unchanged", "two": "unchanged"}
    after = draft.state()
    assert {name for name in before if after[name] != before[name]} == {"pool.json"}
    assert sorted(Pool.open(draft.pool).names) == ["new", "one", "two"]


def test_a_rebuild_keeps_the_name_an_expert_was_given(draft: Draft):
    draft.build()
    Pool.open(draft.pool).rename("one", "uno")
    assert draft.build() == {"one": "unchanged", "two": "unchanged"}
    assert sorted(Pool.open(draft.pool).names) == ["two", "uno"]


def test_a_failing_expert_does_not_stop_the_others(draft: Draft, adapter: Path, edit_json: Callable[..., None]):
    edit_json(adapter / "adapter_config.json", use_dora=True)
    (draft.root / "bad.jsonl").write_text('{"input": 1}\n', "utf8")
    draft.plan["experts"] = [
        {"name": "bad", "data": "bad.jsonl"},
        {"name": "dora", "adapter": "lora"},
        {"name": "absent", "data": "nowhere.jsonl"},
        {"name": "unreachable", "adapter": "nobody/no-such-adapter"},
        *draft.plan["experts"],
    ]
    told = draft.build()
    assert {name for name, status in told.items() if status.startswith("failed ")} == {
        *("bad", "dora", "absent", "unreachable")
    }
    for name, part in {"bad": "bad.jsonl", "dora": "use_dora", "absent": "nowhere.jsonl"}.items():
        assert part in told[name]
    assert Pool.open(draft.pool).names == ["one", "two"]
    draft.rows("bad")
    again = draft.build()
    assert again["bad"] == "done" and again["one"] == again["two"] == "unchanged"


def test_a_repaired_expert_leaves_nothing_behind(draft: Draft, adapter: Path, edit_json: Callable[..., None]):
    settings = (adapter / "adapter_config.json").read_bytes()
    edit_json(adapter / "adapter_config.json", use_dora=True)
    draft.plan["experts"] = [{"name": "ex", "adapter": "lora"}]
    assert draft.build()["ex"].startswith("failed")
    (adapter / "adapter_config.json").write_bytes(settings)
    assert draft.build() == {"ex": "done"}
    assert draft.leftovers() == []


def test_an_older_expert_stays_while_its_successor_fails(draft: Draft):
    draft.build()
    before = draft.bytes_of("two", EXPERT_FILES)
    (draft.root / "two.jsonl").write_text("no rows", "utf8")
    assert draft.build()["two"].startswith("failed")
    assert draft.bytes_of("two", EXPERT_FILES) == before
    assert Pool.open(draft.pool).names == ["one", "two"]


def test_experts_made_at_the_same_time_all_join(draft: Draft):
    """A changed expert lies in its place before the index tells of it; the others must not trip over that."""
    draft.build()
    draft.plan["defaults"]["rank"] = 3
    assert draft.build(AllAtOnce()) == {"one": "done", "two": "done"}
    pool = Pool.open(draft.pool)
    pool.verify()
    assert {expert.layout.rank for expert in pool} == {3}


def test_a_job_attempted_twice_makes_the_same_expert(draft: Draft):
    job = PoolPlan.read(draft.write()).jobs(draft.root, draft.pool)[0]
    for _ in range(2):
        result = attempt(job)
        assert result.fault is None and result.result == job.work
    assert draft.build() == {"one": "done", "two": "done"}
    first = draft.bytes_of("one")
    assert attempt(job).fault is None  # it would be stored again, as it is
    job.store(job.work)
    assert draft.bytes_of("one") == first
    assert draft.build() == {"one": "unchanged", "two": "unchanged"}


@pytest.mark.parametrize("kind", ["data", "adapter", "both"])
def test_a_job_that_stopped_before_the_end_goes_on(
    draft: Draft, adapter: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """The expert was made and the process died before it was put in place."""
    entry = {"data": {"data": "one.jsonl"}, "adapter": {"adapter": "lora"}}
    entry["both"] = {**entry["data"], **entry["adapter"]}
    draft.plan["experts"] = [{"name": "ex", **entry[kind]}]
    with monkeypatch.context() as patched:
        patched.setattr(build, "put_directory", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            draft.build()
    assert not (draft.pool / "ex").exists()
    assert draft.build() == {"ex": "done"}
    assert all(site.has_gate == (kind != "adapter") for site in Expert.open(draft.pool / "ex").sites.values())
    Pool.open(draft.pool).verify()
    assert draft.leftovers() == []


@pytest.mark.parametrize("change", ["settings", "adapter"])
def test_a_stopped_job_is_not_taken_for_another_one(
    draft: Draft, adapter: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    """What a stopped job left must not become the expert of a plan that was changed since."""
    draft.plan["experts"] = [{"name": "ex", **({"data": "one.jsonl"} if change == "settings" else {"adapter": "lora"})}]
    with monkeypatch.context() as patched:
        patched.setattr(build, "put_directory", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            draft.build()
    if change == "settings":
        draft.plan["defaults"]["rank"] = 3
    else:
        (draft.root / "other").mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(adapter / file, draft.root / "other" / file)
        content = bytearray((draft.root / "other" / "adapter_model.safetensors").read_bytes())
        content[-1] ^= 1
        (draft.root / "other" / "adapter_model.safetensors").write_bytes(content)
        draft.plan["experts"][0]["adapter"] = "other"
    assert draft.build() == {"ex": "done"}
    if change == "settings":
        assert Expert.open(draft.pool / "ex").layout.rank == 3
    else:
        assert draft.bytes_of("ex", ("adapter_model.safetensors",)) == {"adapter_model.safetensors": bytes(content)}


def test_an_expert_lost_in_the_moment_of_its_replacement_comes_back(draft: Draft, monkeypatch: pytest.MonkeyPatch):
    """The old expert may be gone and the new one not yet in place when the process dies."""
    draft.build()
    draft.plan["experts"][1]["config"] = {"rank": 3}
    with monkeypatch.context() as patched:
        patched.setattr(build, "put_directory", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            draft.build()
    assert draft.build() == {"one": "unchanged", "two": "done"}
    pool = Pool.open(draft.pool)
    pool.verify()
    assert pool["two"].layout.rank == 3


def test_a_second_build_of_one_pool_is_told(draft: Draft):
    """Two at once would train the same experts in the same directories."""
    plan = PoolPlan.read(draft.write())
    first = build_pool(plan, draft.root, draft.pool, LocalExecutor())
    next(first)
    with pytest.raises(ConfigError, match=r"one process that writes into .*; got another one at work"):
        next(build_pool(plan, draft.root, draft.pool, LocalExecutor()))
    assert [result.status for result in first] == ["done"]
    assert draft.build() == {"one": "unchanged", "two": "unchanged"}


def test_the_device_and_the_threads_are_part_of_an_experts_record(draft: Draft):
    spec = BaseSpec(dtype="bfloat16")
    [one, _] = PoolPlan.read(draft.write()).jobs(draft.root, draft.pool, spec)
    assert one.base == BaseSpec(base=draft.plan["base"], dtype="bfloat16")
    assert one.key != PoolPlan.read(draft.write()).jobs(draft.root, draft.pool)[0].key
    results = list(run_jobs([replace(one, base=BaseSpec(base=draft.plan["base"]), threads=1)], LocalExecutor()))
    assert [result.status for result in results] == ["done"]
    record = Expert.open(draft.pool / "one").card.training["resources"]
    assert record == {"device": "cpu", "threads": 1}


def test_progress_names_every_expert(draft: Draft):
    lines: list[tuple[str, str, float]] = []
    draft.build(report=lambda *line: lines.append(line))
    assert {name for name, _, _ in lines} == {"one", "two"}
    assert all(text and 0 <= share <= 1 for _, text, share in lines)


def test_the_command_tells_what_it_did(draft: Draft, glider: Callable[..., tuple[int, str, str]]):
    code, out, err = glider("pool", "build", draft.write(), "--out", draft.pool)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines() if line.strip()] == [["one", "done"], ["two", "done"]]
    assert err.splitlines() == ["one: done", "two: done"]


def test_an_expert_that_a_build_adds_changes_the_calibration(draft: Draft, glider: Callable[..., tuple[int, str, str]]):
    draft.plan["defaults"] |= {"validation": 20}
    for name in ("one", "two", "three"):
        lines = [json.dumps({"input": f"{name} {name}{i} say", "output": "x"}) + "\n" for i in range(200)]
        (draft.root / f"{name}.jsonl").write_text("".join(lines), "utf8")
    assert glider("pool", "build", draft.write(), "--out", draft.pool)[0] == 0
    code, _, err = glider("pool", "calibrate", draft.pool)
    assert code == 0, err
    draft.plan["experts"].append({"name": "three", "data": "three.jsonl"})
    assert glider("pool", "build", draft.write(), "--out", draft.pool)[0] == 0
    assert Pool.open(draft.pool).index.calibrations["examples"].experts == ("one", "two", "three")


def test_a_failure_is_named_at_the_end_with_exit_code_1(draft: Draft, glider: Callable[..., tuple[int, str, str]]):
    (draft.root / "one.jsonl").write_text("no rows", "utf8")
    code, out, err = glider("pool", "build", draft.write(), "--out", draft.pool, "--json")
    assert code == 1
    told = {row["name"]: row for row in json.loads(out)}
    assert told["one"]["status"] == "failed" and "one.jsonl" in told["one"]["message"]
    assert told["two"] == {"name": "two", "status": "done", "message": ""}
    assert err.splitlines()[-1] == "glider: 1 of 2 experts failed: one"
    assert Pool.open(draft.pool).names == ["two"]


def test_a_faulty_plan_is_one_line_with_exit_code_2(draft: Draft, glider: Callable[..., tuple[int, str, str]]):
    draft.plan["experts"].append({"name": "three"})
    code, _, err = glider("pool", "build", draft.write(), "--out", draft.pool)
    assert code == 2
    assert err.count("\n") == 1 and "three: neither data nor adapter" in err
    assert not draft.pool.exists()


@pytest.mark.slow
def test_two_workers_make_the_same_bytes_as_one(draft: Draft, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    draft.plan["experts"].append({"name": "bad", "data": "nowhere.jsonl"})
    told = draft.build()
    alone = {name: draft.bytes_of(name) for name in ("one", "two")}
    shutil.rmtree(draft.pool)
    lines: list[tuple[str, str, float]] = []
    assert draft.build(LocalExecutor(2), lambda *line: lines.append(line)) == told
    assert {name: draft.bytes_of(name) for name in ("one", "two")} == alone
    assert {name for name, _, _ in lines} == {"one", "two"}
    assert sorted(Pool.open(draft.pool).names) == ["one", "two"]


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_own_expert_alone(draft: Draft, monkeypatch: pytest.MonkeyPatch):
    """The system ends a process that takes too much memory. The others, and those that wait, must not go with it.

    It is ended before it has loaded PyTorch: one that reports may be done before its report is read.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    draft.plan["experts"].append({"name": "three", "data": "two.jsonl"})

    give = Worker.give

    def killed(worker: Worker, job: ExpertJob) -> None:
        if job.name == "one":
            worker.process.kill()
            worker.process.join()
        give(worker, job)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "give", killed)
        told = draft.build(LocalExecutor(2))
    assert told.pop("one").startswith("failed its process ended early (SIGKILL")
    assert told == {"two": "done", "three": "done"}
    assert draft.build() == {"one": "done", "two": "unchanged", "three": "unchanged"}
    assert draft.leftovers() == []


def test_a_build_without_workers_is_refused() -> None:
    """It would wait for ever."""
    with pytest.raises(ConfigError, match="at least one worker; got 0"):
        LocalExecutor(0)


def test_a_worker_may_die_in_the_middle_of_a_report() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    os.write(sender.fileno(), struct.pack("!i", 1000) + b"the first of so many bytes")
    sender.close()
    assert Worker(multiprocessing.Process(), receiver).receive() is None


@pytest.mark.slow
def test_an_interrupted_build_stops_its_workers(draft: Draft, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C once ended the experts at work and let those that waited be made, one after the other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    draft.plan["experts"].append({"name": "three", "data": "two.jsonl"})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draft.build(LocalExecutor(2), interrupt)
    assert multiprocessing.active_children() == []
    assert not (draft.pool / "three").exists()
    told = draft.build()  # an expert may have been whole before the interruption came through
    assert told.pop("three") == "done" and set(told.values()) <= {"done", "unchanged"}


ORPHANS = """
import multiprocessing
import sys
import time
from pathlib import Path
from glider.contribute.build import PoolPlan, build_pool
from glider.inference.spec import BaseSpec
from glider.jobs.local import LocalExecutor, Worker
from glider.jobs.run import run_jobs

def told(*line):
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    plan, pool = map(Path, sys.argv[1:])
    list(build_pool(PoolPlan.read(plan), plan.parent, pool, LocalExecutor(2), told))
"""


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_build(draft: Draft):
    """Otherwise they would go on beside those of the next build, in the same directories."""
    draft.plan["defaults"]["steps"] = 100_000
    (draft.root / "orphans.py").write_text(ORPHANS, "utf8")
    command = [sys.executable, str(draft.root / "orphans.py"), str(draft.write()), str(draft.pool)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as killed:
        assert killed.stdout is not None
        workers = [Path("/proc") / pid for pid in killed.stdout.readline().split()]
        assert len(workers) == 2 and all(worker.exists() for worker in workers)
        killed.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process: Path) -> bool:
    """Whether a process runs; one that ended and that nobody has asked for yet does not."""
    try:
        return "\nState:\tZ" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


KILLED_BUILD = """
import os
import signal
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from glider.contribute import loop
from glider.contribute.build import PoolPlan, build_pool
from glider.inference.spec import BaseSpec
from glider.jobs.local import LocalExecutor, Worker
from glider.jobs.run import run_jobs

loop.SAVE_SECONDS = 0.0
plan, pool = map(Path, sys.argv[1:3])

def told(name, text, share):
    if f"{name} {text}".startswith(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

list(build_pool(PoolPlan.read(plan), plan.parent, pool, LocalExecutor(), told))
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["one lora 9/", "one gates 3/", "two lora 5/"])
def test_a_killed_build_goes_on_to_the_same_bytes(draft: Draft, moment: str):
    draft.plan["defaults"] |= {"steps": 20, "gate_steps": 8}
    draft.build()
    whole = {name: draft.bytes_of(name) for name in ("one", "two")}
    shutil.rmtree(draft.pool)
    command = [sys.executable, "-c", KILLED_BUILD, str(draft.write()), str(draft.pool), moment]
    killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    seen: list[str] = []
    told = draft.build(report=lambda name, text, share: seen.append(f"{name} {text}"))
    assert told == {"one": "unchanged" if moment.startswith("two") else "done", "two": "done"}
    stage = moment.split("/")[0].rsplit(" ", 1)[0]
    first = next(line for line in seen if line.startswith(stage))
    assert not first.startswith(f"{stage} 1/")
    assert {name: draft.bytes_of(name) for name in ("one", "two")} == whole
    assert draft.leftovers() == []
    Pool.open(draft.pool).verify()
