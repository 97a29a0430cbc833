"""Jobs that run on machines without their files: what a job must declare so that another machine can run it."""

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
        """The approximate duration, in any unit that the jobs of a run share."""
        ...

    @property
    def folder(self) -> Path | None:
        """The folder of its unfinished work, which travels with the job and comes back. None: it has none."""
        ...

    def leaving(self) -> "Travelling":
        """The job as it is sent. Raises `GliderError` if its result could not be stored."""
        ...

    def moved(self, places: Mapping[Path, Path], scratch: Path) -> "Travelling":
        """The same job on another machine, with the files that it reads in these places and `scratch` to work in."""
        ...

    def take(self, content: Parcel) -> None:
        """Put received files into `folder`: unfinished or finished work."""
        ...

    def arrived(self, result: Any) -> Any:
        """The argument of `store` here, from the return value of `run` elsewhere, once `folder` has come back."""
        ...


def longest_first(jobs: Sequence[Any]) -> list[Any]:
    """The order in which the last jobs to end are short ones, so that no worker waits long for the last."""
    return sorted(jobs, key=lambda job: -job.effort)
