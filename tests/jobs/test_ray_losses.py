"""A run ends whatever dies: no job waits for an actor that has no room, nor for the word of one that is gone."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glider.jobs.base import JobTick, Resources, silent
from glider.jobs.ray_executor import RayExecutor
from glider.jobs.ray_seats import Running, Seats

ray = pytest.importorskip("ray", reason="needs the extra ray")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and log files to the collector
    pytest.mark.filterwarnings("ignore:Tip.*:FutureWarning"),
]
TASKS, ACTORS = pytest.param(False, id="tasks"), pytest.param(True, id="actors")
SHORT_ACTORS = pytest.param(True, id="actors", marks=pytest.mark.short)
SIZES = {"small": "at work", "large": "x" * 300_000}  # large messages lie on the node of who sent them


class Light:
    """A job that tells ten times of itself; `text` says how much each time."""

    key, finished, reads, effort, folder, resources = "k", False, (), 1.0, None, Resources()

    def __init__(self, name: str, text: str = "at work"):
        self.name, self.text = name, text

    def leaving(self) -> "Light":
        return self

    def moved(self, places: Any, scratch: Path) -> "Light":
        return self

    def arrived(self, result: Any) -> Any:
        return result

    def run(self, report: JobTick) -> str:
        for _ in range(10):
            report(self.name, self.text, 1.0)
            time.sleep(0.01)
        return self.name


class Fatal(Light):
    """A job that ends its process, after what it told."""

    def run(self, report: JobTick) -> str:
        super().run(report)
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"


def jobs(count: int) -> list[Light]:
    return [Light(f"job {number}") for number in range(count)]


def results(executor: RayExecutor, jobs: list[Light], report: JobTick = silent) -> dict[str, Any]:
    told = {}
    for attempt in executor.run(jobs, report):
        assert attempt.fault is None, attempt.fault
        assert attempt.job.name not in told, "a job ended twice"
        told[attempt.job.name] = attempt.result
    return told


@pytest.mark.parametrize("keep", [TASKS, SHORT_ACTORS])
def test_a_run_ends_though_others_have_part_of_the_room(keep: bool, add_node: Callable[[], Any]):
    """Of two CPUs one is another run's. Once the second actor had a job and waited for the room of the first one,
    which was idle in the end and stayed until the end of the run: for ever. The same came of a node that was dead
    before the cluster knew it."""
    add_node(), add_node()
    other = ray.remote(Occupant).options(num_cpus=1).remote()
    ray.get(other.__ray_ready__.remote())
    assert len(results(RayExecutor(keep=keep), jobs(4))) == 4
    ray.kill(other)


class Occupant:
    """Somebody else's actor."""


@pytest.mark.short
def test_a_death_is_heard_of_though_its_messages_stay_silent(
    add_node: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
):
    """The stream of the first job is that of an actor which lives and says nothing; its end, of one that is killed."""
    add_node()
    mute = ray.remote(Mute).options(num_cpus=0).remote()
    by_actor, silent_ones, seen = Running.by_actor, [], []

    def first_is_silent(job: Any, order: Any, actor: Any) -> Running:
        running = by_actor(job, order, actor)
        if not silent_ones:
            silent_ones.append(running)
            running.messages = mute.work.options(num_returns="streaming").remote()
            ray.kill(actor)
        return running

    monkeypatch.setattr(Running, "by_actor", first_is_silent)
    told = results(RayExecutor(keep=True), [Slow("slow")], lambda name, text, share: seen.append(text))
    assert told == {"slow": "slow"}
    assert sum("tried again" in text for text in seen) == 1
    ray.kill(mute)


class Slow(Light):
    """A job that is at work for longer than it takes to end its actor."""

    def run(self, report: JobTick) -> str:
        time.sleep(3)
        return super().run(report)


class Mute:
    """An actor whose stream never says a word."""

    def work(self) -> Any:
        time.sleep(3600)
        yield "never"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keep", [TASKS, ACTORS])
def test_a_process_that_ends_every_time_is_a_failure_in_the_end(size: str, keep: bool, add_node: Callable[[], Any]):
    """As one does that is ended for want of memory."""
    add_node()
    (result,) = RayExecutor(losses=1, keep=keep).run([Fatal("fatal", SIZES[size])], silent)
    assert result.fault is not None and result.fault.type == "ProcessEnded"
    assert "lost 2 times" in result.fault.message and socket.gethostname() in result.fault.message


@pytest.mark.parametrize("moment", [1, 12, 45, 90, 115])
@pytest.mark.parametrize("keep", [TASKS, ACTORS])
def test_the_node_that_is_left_does_the_rest(keep: bool, moment: int, add_node: Callable[[], Any], kill: Any):
    """A node is killed at several moments, and none comes in its place."""
    nodes, seen = [add_node(), add_node()], []

    def report(name: str, text: str, share: float) -> None:
        seen.append(text)
        if len(seen) == moment:
            kill(nodes[moment % 2])

    assert len(results(RayExecutor(keep=keep), jobs(12), report)) == 12, seen


def test_actors_that_never_come_up_are_a_failure_in_the_end(
    add_node: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
):
    add_node()
    monkeypatch.setattr("glider.jobs.ray_seats.Seat", Broken)
    attempts = list(RayExecutor(losses=1, keep=True).run(jobs(2), silent))
    faults = [attempt.fault for attempt in attempts if attempt.fault is not None]
    assert [fault.type for fault in faults] == ["ProcessEnded", "ProcessEnded"]
    assert any("no such library here" in fault.message for fault in faults), faults


class Broken:
    """An actor whose process cannot be what it should."""

    def __init__(self) -> None:
        raise ImportError("no such library here")


def test_seats_ask_for_no_more_than_there_are_jobs(add_node: Callable[[], Any]):
    add_node()
    seats = Seats(ray, {"num_cpus": 1})
    seats.ask(3)
    assert len(seats.coming) == 3
    seats.ask(1)
    assert len(seats.coming) == 1
    (up,) = seats.coming
    ray.wait([up], timeout=60)
    seats.arrive(up)
    assert len(seats.idle) == 1 and not seats.coming
    seats.ask(1)
    assert not seats.coming
    seats.close()
    assert not seats.idle
