"""How often a job that can go on saves itself, where that is not for the job to choose."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_steps: ContextVar[int | None] = ContextVar("steps", default=None)


@contextmanager
def saving_every(steps: int) -> Iterator[None]:
    """Let trainings inside the block save themselves every so many steps, where each saving is sent somewhere.

    It is no setting of a training: how often one saves itself depends on where it runs, and changes no bit of it.
    """
    token = _steps.set(steps)
    try:
        yield
    finally:
        _steps.reset(token)


def save_steps() -> int | None:
    """Steps between two savings, or None where the training chooses."""
    return _steps.get()
