"""Experts that fail, jobs that stop and builds that are killed: the others stay, and the next build goes on."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from glider.contribute import build
from glider.contribute.build import PoolPlan, build_pool
from glider.errors import ConfigError
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.pool import Pool
from glider.jobs.base import attempt
from glider.jobs.local import LocalExecutor
from glider.jobs.ray_node import Checkpoint, Courier

from .drafts import Draft


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


@pytest.mark.parametrize("kind", ["data", "both"])
def test_an_attempt_that_comes_no_further_sends_no_checkpoint(draft: Draft, adapter: Path, kind: str):
    """On a cluster a checkpoint clears the count of losses: else a process that ends each time in its gates would be
    tried for ever."""
    entry = {"data": "one.jsonl", **({"adapter": "lora"} if kind == "both" else {})}
    draft.plan["experts"] = [{"name": "ex", **entry}]
    (job,) = PoolPlan.read(draft.write()).jobs(draft.root, draft.pool)
    sent = []
    for _ in range(3):
        messages: SimpleQueue[Any] = SimpleQueue()
        courier = Courier(job, messages)

        def until_the_gates(name: str, text: str, share: float, courier: Courier = courier) -> None:
            courier(name, text, share)
            if text.startswith("gates"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            job.run(until_the_gates)
        told = [messages.get() for _ in range(messages.qsize())]
        sent.append(any(isinstance(message, Checkpoint) for message in told))
    assert sent == [True, False, False]


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
