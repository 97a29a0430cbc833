"""How often a resumable job saves its state, where the executor decides that."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_steps: ContextVar[int | None] = ContextVar("steps", default=None)


@contextmanager
def saving_every(steps: int) -> Iterator[None]:
    """Let trainings inside the block save their state every this many steps, where each state is sent somewhere; after
    two minutes at the latest.

    It is not a setting of the training: it depends on where the training runs, and changes no bit of the result.
    """
    token = _steps.set(steps)
    try:
        yield
    finally:
        _steps.reset(token)


def save_steps() -> int | None:
    """Steps between two savings, or None where the training chooses."""
    return _steps.get()
