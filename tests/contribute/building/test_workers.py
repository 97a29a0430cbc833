"""Workers make the same bytes as one process, fail alone, and do not outlive their build."""

import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from glider.contribute.build import ExpertJob
from glider.errors import ConfigError
from glider.experts.pool import Pool
from glider.jobs.base import Attempt, JobTick, attempt
from glider.jobs.local import LocalExecutor, Worker

from .drafts import Draft


class AllAtOnce:
    """Runs every job before it tells of the first, as workers that are faster than their pool do."""

    def run(self, jobs: Sequence[ExpertJob], report: JobTick) -> Iterator[Attempt]:
        yield from [attempt(job, report) for job in jobs]


def test_experts_made_at_the_same_time_all_join(draft: Draft):
    """A changed expert lies in its place before the index tells of it; the others must not trip over that."""
    draft.build()
    draft.plan["defaults"]["rank"] = 3
    assert draft.build(AllAtOnce()) == {"one": "done", "two": "done"}
    pool = Pool.open(draft.pool)
    pool.verify()
    assert {expert.layout.rank for expert in pool} == {3}


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
