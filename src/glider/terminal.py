"""The one way to a terminal: what is printed may be a stranger's text, and is made printable here.

Lines, JSON and tables alike: no escape sequence, control character or mark of writing direction passes, and square
brackets are square brackets, not styles.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glider.printable import dump_json, piece, visible

_UNFOLDED = 10_000  # characters of a line
_quiet = False


def be_quiet(quiet: bool) -> None:
    """Show no progress from now on, or show it again: `--quiet`. Results, warnings and errors are printed as ever."""
    global _quiet
    _quiet = quiet


def say(text: str = "", *, error: bool = False) -> None:
    """Print a text on lines of its own; an `error` on stderr."""
    _write(visible(text) + "\n", error)


def note(text: str) -> None:
    """Print what is going on, on a line of stderr; nothing with `--quiet`."""
    if not _quiet:
        say(text, error=True)


def say_json(value: Any, indent: int | None = 2) -> None:
    """Print a value as JSON: the same value to whoever parses it, with invisible characters escaped."""
    _write(dump_json(value, indent) + "\n")


def say_piece(text: str) -> None:
    """Print a part of an answer as it comes, without a line break of our own."""
    _write(piece(text))


def has_width() -> bool:
    """Whether lines of standard output end somewhere: a pipe or a file has no width."""
    return sys.stdout.isatty() or "COLUMNS" in os.environ


def console(*, stderr: bool = False, wrap: bool = True) -> Any:
    """rich's console for our tables and bars: texts are taken as they are, and styles given as such."""
    from rich.console import Console
    from rich.text import Text

    class PrintableConsole(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(visible(text), **how)

    return PrintableConsole(
        stderr=stderr,
        quiet=stderr and _quiet,
        width=None if stderr or has_width() else _UNFOLDED,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=not wrap,
    )


def _write(text: str, error: bool = False) -> None:
    """Write at once, so that a full disk behind a redirection is told as what it is."""
    print(text, end="", flush=True, file=sys.stderr if error else sys.stdout)


@contextmanager
def named_streams() -> Iterator[None]:
    """Let what the system refuses to standard output and error name them within the block, whoever writes there.

    Characters that an output's encoding lacks are escaped, where Python would end with an error.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    streams: Any = (_Named(sys.stdout, "standard output"), _Log(sys.stderr, "standard error"))
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        if (sys.stdout, sys.stderr) == streams:
            sys.stdout, sys.stderr = before


class _Named:
    """A stream whose errors have its name; all else is the stream's own."""

    def __init__(self, stream: Any, name: str):
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        """Write, by that name."""
        with self._naming():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, by that name."""
        with self._naming():
            self._stream.flush()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise OSError(fault.errno, fault.strerror, self._name) from fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Log(_Named):
    """Standard error, which tells how the work goes: where its disk is full nobody can be told, and it goes on."""

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            with super()._naming():
                yield
        except OSError as fault:
            if fault.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
