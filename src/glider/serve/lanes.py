"""One thread that works for all keys in turn, so that none waits behind all that another one asked."""

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

LANE: ContextVar[str] = ContextVar("LANE", default="")  # the key that this task works for; "" is the server itself
_Job = tuple["Future[Any]", Callable[[], Any]]


class Lanes:
    """Jobs by lane: in order within one, and one of each lane in turn."""

    def __init__(self, name: str):
        self._lanes: dict[str, deque[_Job]] = {}  # those with jobs, the next one first
        self._unfinished = Counter[str]()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, lane: str, work: Callable[[], Any]) -> "Future[Any]":
        """Do some work when its turn has come; raises `RuntimeError` after `close`."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("a job for lanes that are closed")
            self._lanes.setdefault(lane, deque()).append((future, work))
            self._unfinished[lane] += 1
            self._changed.notify_all()
        return future

    def unfinished(self, lane: str) -> int:
        """Jobs of a lane that wait or run."""
        return self._unfinished[lane]

    @property
    def busy(self) -> int:
        """Lanes with jobs that wait or run."""
        return len(+self._unfinished)

    def close(self) -> None:
        """End with the job that runs; those that wait are cancelled."""
        with self._changed:
            self._closed = True
            waiting = [future for lane in self._lanes.values() for future, _ in lane]
            self._lanes.clear()
            self._changed.notify_all()
        for future in waiting:
            future.cancel()
        self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            lane, future, work = job
            if future.set_running_or_notify_cancel():
                try:
                    result = work()
                except BaseException as fault:  # whoever waits for it has it
                    future.set_exception(fault)
                else:
                    future.set_result(result)
            with self._changed:
                self._unfinished[lane] -= 1
            del job, future, work  # what they hold goes with them

    def _next(self) -> tuple[str, "Future[Any]", Callable[[], Any]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lanes or self._closed)
            if not self._lanes:
                return None
            lane = next(iter(self._lanes))
            jobs = self._lanes.pop(lane)
            future, work = jobs.popleft()
            if jobs:
                self._lanes[lane] = jobs  # behind the others
            return lane, future, work
