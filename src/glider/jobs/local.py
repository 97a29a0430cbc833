"""Jobs on this machine: in this process, or in several, the cores shared among them."""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from glider.errors import ConfigError
from glider.jobs.base import Attempt, Fault, JobTick, attempt
from glider.jobs.memory import give_back


@dataclass(frozen=True)
class LocalExecutor:
    """Worker processes on this machine; one worker is this process itself.

    A worker keeps loaded models from one job to the next. If a worker dies only its job fails, and a new worker
    replaces it. No worker outlives the caller.
    """

    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError("at least one worker", str(self.workers), "Give 1 or more.")

    def run(self, jobs: Sequence[Any], report: JobTick) -> Iterator[Attempt]:
        """Run them in their order; attempts come as they end."""
        if self.workers == 1:
            for job in jobs:
                with threads(job.resources.threads):
                    result = attempt(job, report)
                give_back()
                yield result
            return
        waiting, running = deque(jobs), dict[Any, Worker]()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    worker = Worker.start(self.workers)
                    running[worker.connection] = worker
                    worker.give(waiting.popleft())
                for connection in wait(list(running)):
                    worker = running[connection]
                    message = worker.receive()
                    if isinstance(message, tuple):
                        report(*message)
                        continue
                    result = message or Attempt(worker.job, fault=worker.early_end())
                    if message is not None and waiting:
                        worker.give(waiting.popleft())
                    else:
                        worker.stop()
                        del running[connection]
                    yield result
        finally:
            for worker in running.values():
                worker.process.terminate()
                worker.process.join()


@dataclass
class Worker:
    """A process that runs one job after another, and the connection that brings its reports and results."""

    process: BaseProcess
    connection: Any
    job: Any = None

    @classmethod
    def start(cls, workers: int) -> "Worker":
        """One of so many processes."""
        context = get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, workers), daemon=True)
        process.start()
        there.close()
        return cls(process, here)

    def give(self, job: Any) -> None:
        """Give it a job to run."""
        self.job = job
        try:
            self.connection.send(job)
        except OSError:  # it is dead already, which `receive` notices
            return

    def receive(self) -> Any:
        """A report, an attempt, or None from a process that died, be it in the middle of a report."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def stop(self) -> None:
        """End it while it has no job."""
        self.connection.close()
        self.process.join()

    def early_end(self) -> Fault:
        """Why a process died."""
        self.process.join()
        code = self.process.exitcode
        reason = f"exit code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            reason = f"{name}, most often for want of memory" if name == "SIGKILL" else name
        return Fault("ProcessEnded", f"its process ended early ({reason})", (reason,))


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with this many threads inside the block; None leaves their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _work(connection: Any, workers: int) -> None:
    """The loop of a worker, which ends with the process that started it; that process handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    share = max(1, (os.cpu_count() or 1) // workers)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        with threads(job.resources.threads or share):
            connection.send(attempt(job, lambda name, text, share: connection.send((name, text, share))))
        give_back()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
