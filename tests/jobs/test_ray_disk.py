"""A disk of the driver's that is full: the job whose files it does not take fails, the others go on."""

import errno
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from glider.jobs.base import silent
from glider.jobs.parcel import Parcel
from glider.jobs.ray_cluster import Need
from glider.jobs.ray_executor import Dispatch, RayExecutor
from glider.jobs.ray_node import Checkpoint, Ended
from glider.jobs.ray_seats import Running


class Homeless:
    """A job for whose files there is no room."""

    name, effort = "homeless", 1.0

    def take(self, content: Parcel) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "pool/.making")


@pytest.mark.parametrize("message", [Checkpoint(Parcel()), Ended(content=Parcel())], ids=["checkpoint", "end"])
def test_files_that_have_no_place_here_are_that_jobs_failure(message: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error ended the run, and every other training with it."""
    ended: list[Any] = []
    ray = SimpleNamespace(
        cancel=lambda messages, force: ended.append(messages),
        exceptions=SimpleNamespace(RayTaskError=RuntimeError, RayError=RuntimeError),
    )
    job, other = Homeless(), Homeless()
    dispatch = Dispatch(ray, RayExecutor(), Need(1, 0), deque(), silent)
    dispatch.running = [Running(job, "messages", None), Running(other, "others", None)]
    monkeypatch.setattr(Running, "hear", lambda running, ray: message)
    [attempt] = dispatch._hear(dispatch.running[0])
    assert attempt.job is job and attempt.fault is not None and "No space left" in attempt.fault.text
    assert [running.job for running in dispatch.running] == [other]
    assert ended == (["messages"] if isinstance(message, Checkpoint) else []), "what goes on there is stopped"
