"""A job: a self-contained, retryable, idempotent piece of work, whose result one process stores."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import Field

from glider.config import Config
from glider.errors import GliderError, refused_by_system, system_refusal

Status = Literal["unchanged", "done", "failed", "absent"]
JobTick = Callable[[str, str, float], None]
"""Receives a job's name, its current step, and the share that is done."""


class Resources(Config):
    """What a job needs of the machine that runs it; part of its record, since results depend on it in the last bits."""

    threads: int | None = Field(default=None, ge=1)  # None: the executor's share of the cores
    device: str = "cpu"


class Job(Protocol):
    """A piece of work. It can be sent to another process, and the same job gives the same result wherever it runs."""

    @property
    def name(self) -> str:
        """Its name among the jobs of a run."""
        ...

    @property
    def key(self) -> str:
        """The hash of everything that decides the result. Raises `ConfigError` where a file of it is missing."""
        ...

    @property
    def resources(self) -> Resources:
        """What it needs."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the result of this very job is stored."""
        ...

    def run(self, report: JobTick) -> Any:
        """Do the work, on any machine; returns the argument of `store`. An interrupted attempt may be repeated."""
        ...

    def store(self, result: Any) -> None:
        """Put the result in place, whole. One process does so for all jobs of a folder."""
        ...


@dataclass(frozen=True)
class Fault:
    """Why a job failed: the error's class and its text on one line; `parts` are those of one of our own errors, or of
    what the system refused.

    On another machine, `node` names it, and `log` is the end of the job's output there.
    """

    type: str
    text: str
    parts: tuple[str, ...] = ()
    node: str = ""
    log: str = ""

    @classmethod
    def of(cls, error: BaseException) -> "Fault":
        """An error as a fault."""
        if isinstance(error, OSError) and error.strerror is not None:
            return cls(type(error).__name__, refused_by_system(error), system_refusal(error))
        parts = (error.wanted, error.got, error.remedy) if isinstance(error, GliderError) else ()
        return cls(type(error).__name__, " ".join(str(error).split()), parts)

    @property
    def message(self) -> str:
        """The text for a user; an error with parts needs no class name."""
        text = self.text if self.parts else f"{self.type}: {self.text}"
        return f"{text} (on {self.node})" if self.node else text


@dataclass(frozen=True)
class Attempt:
    """The outcome of one attempt at a job: a result or a fault."""

    job: Any
    result: Any = None
    fault: Fault | None = None


@dataclass(frozen=True)
class JobResult:
    """How a job ended."""

    job: Any
    status: Status
    fault: Fault | None = None

    @property
    def message(self) -> str:
        """Why it failed; empty if it did not."""
        return "" if self.fault is None else self.fault.message


class Executor(Protocol):
    """Runs jobs somewhere and yields each attempt as it ends; a job that fails does not stop the others."""

    def run(self, jobs: Sequence[Any], report: JobTick) -> Iterator[Attempt]: ...


def silent(name: str, text: str, share: float) -> None:
    """A report that does nothing."""


def attempt(job: Any, report: JobTick = silent) -> Attempt:
    """Run a job; an error becomes the attempt's fault."""
    try:
        return Attempt(job, result=job.run(report))
    except Exception as error:  # one job's failure is reported at the end, and is not the others'
        return Attempt(job, fault=Fault.of(error))
