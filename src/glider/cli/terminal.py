"""What every command shares on the terminal."""

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from glider.errors import GliderError, GliderWarning, refused_by_system
from glider.printable import printable
from glider.terminal import say

if TYPE_CHECKING:
    from rich.table import Table

    from glider.jobs.base import JobResult
    from glider.progress import Bars

BASE_ALONE = "the base model alone"
_python_lines = warnings.formatwarning


def quiet_libraries() -> None:
    """Keep libraries' chatter off a user's terminal: their deprecations are ours to heed, not the user's."""
    from transformers.utils import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def plain_table(*heads: str) -> "Table":
    """A table without lines. In a narrow terminal a cell breaks where it must, and no part of it is left out."""
    from rich.table import Column, Table

    return Table(*(Column(head, overflow="fold") for head in heads), box=None, pad_edge=False)


def plain_warnings() -> None:
    """Print our own warnings as a line that begins with `glider:`, in every command."""
    warnings.formatwarning = _one_line


def exit_code(run: Callable[[], int | None]) -> int:
    """Run a script's work; a `GliderError`, or what the system refuses, is one line and an exit code."""
    try:
        return run() or 0
    except GliderError as fault:
        say(f"error: {fault}", error=True)
        return fault.exit_code
    except OSError as fault:
        if fault.strerror is None:
            raise
        say(f"error: {refused_by_system(fault)}", error=True)
        return 2


def verdict_text(verdict: str | None, bare: bool = False) -> str:
    """A verdict with what it means for the answer, where its word alone does not say so; `bare`: no expert answers."""
    return f"{verdict}: {BASE_ALONE}" if bare or verdict == "stranger" else str(verdict)


def experts_text(count: int) -> str:
    """A number of experts, in words."""
    return "1 expert" if count == 1 else f"{count} experts"


def note_log(bars: "Bars", result: "JobResult") -> None:
    """Show what a job that failed on another machine printed there."""
    fault = result.fault
    if fault is not None and fault.log:
        bars.note(f"{result.job.name} on {fault.node} printed last:")
        for line in fault.log.splitlines():
            bars.note(f"    {printable(line)}")


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings speak to the user; where in the code they were given is nothing to one."""
    if issubclass(category, GliderWarning):
        return f"glider: {' '.join(str(message).split())}\n"
    return _python_lines(message, category, filename, lineno, line)
