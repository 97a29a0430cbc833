"""Runs jobs: finished ones are skipped, the rest is run, and one process stores the results."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from glider.errors import ConfigError, GliderError
from glider.files.replacing import is_place_of_lock
from glider.jobs.base import Executor, Fault, JobResult, JobTick, silent

LOCK_FILE = ".writer.lock"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the one process that stores results in a folder; raises `ConfigError` while there is another."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_place_of_lock(folder / LOCK_FILE):
        expected = f"the lock {folder / LOCK_FILE}, a file"
        raise ConfigError(expected, "a link or no regular file", "Remove it.")
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        expected = f"one process that writes into {folder}"
        raise ConfigError(expected, "another one at work", "Wait for it, or give another directory.") from None
    try:
        yield
    finally:
        lock.release()


def run_jobs(
    jobs: Sequence[Any],
    executor: Executor,
    report: JobTick = silent,
    unchanged: Callable[[Any], None] = lambda job: None,
) -> Iterator[JobResult]:
    """Run the unfinished jobs and store each result; `unchanged` is called with the finished ones.

    The same call resumes after an interruption. A job that fails, in running or storing, is reported and stops no
    other. The caller holds the folder (`only_writer`).
    """
    todo = []
    for job in jobs:
        try:
            if not job.finished:
                todo.append(job)
                continue
            unchanged(job)
        except (GliderError, OSError) as error:
            yield JobResult(job, "failed", Fault.of(error))
        else:
            yield JobResult(job, "unchanged")
    for result in executor.run(todo, report):
        if result.fault is not None:
            yield JobResult(result.job, "failed", result.fault)
            continue
        try:
            result.job.store(result.result)
        except (GliderError, OSError) as error:
            yield JobResult(result.job, "failed", Fault.of(error))
        else:
            yield JobResult(result.job, "done")
