"""Jobs that run where their files are not: what one must tell of itself so that another machine can do it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from glider.jobs.base import Job
from glider.jobs.parcel import Parcel, Source


class Travelling(Job, Protocol):
    """A job that can be done on a machine without its files, and whose result comes back as bytes or JSON."""

    @property
    def reads(self) -> Sequence[Source]:
        """The files that it reads."""
        ...

    @property
    def effort(self) -> float:
        """About how long it takes, in any unit that the jobs of a run share."""
        ...

    @property
    def folder(self) -> Path | None:
        """Where it works and keeps what it has begun; it goes with the job, and comes back. None: nowhere."""
        ...

    def leaving(self) -> "Travelling":
        """The job as it is sent away. Raises `GliderError` where its result could not be stored when it comes."""
        ...

    def moved(self, places: Mapping[Path, Path], scratch: Path) -> "Travelling":
        """The same job on another machine, with the files that it reads in these places and `scratch` to work in."""
        ...

    def take(self, content: Parcel) -> None:
        """Let `folder` hold what has come: work that goes on, or what is done."""
        ...

    def arrived(self, result: Any) -> Any:
        """What `store` takes here, of what `run` returned elsewhere, once `folder` has come back."""
        ...


def longest_first(jobs: Sequence[Any]) -> list[Any]:
    """The order in which the last jobs to end are short ones, so that no worker waits long for the last."""
    return sorted(jobs, key=lambda job: -job.effort)
