"""The one way to a terminal: what is printed may be a stranger's text, and is made printable here.

Lines, JSON and tables alike: no escape sequence, control character or mark of writing direction passes, and square
brackets are square brackets, not styles.
"""

import sys
from typing import Any

from glider.printable import dump_json, piece, visible

_quiet = False


def be_quiet(quiet: bool) -> None:
    """Show no progress from now on, or show it again: `--quiet`. Results, warnings and errors are printed as ever."""
    global _quiet
    _quiet = quiet


def say(text: str = "", *, error: bool = False) -> None:
    """Print a text on lines of its own; an `error` on stderr."""
    _write(visible(text) + "\n", error)


def say_json(value: Any, indent: int | None = 2) -> None:
    """Print a value as JSON: the same value to whoever parses it, with invisible characters escaped."""
    _write(dump_json(value, indent) + "\n")


def say_piece(text: str) -> None:
    """Print a part of an answer as it comes, without a line break of our own."""
    _write(piece(text))


def console(*, stderr: bool = False, wrap: bool = True) -> Any:
    """rich's console for our tables and bars: texts are taken as they are, and styles given as such."""
    from rich.console import Console
    from rich.text import Text

    class PrintableConsole(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(visible(text), **how)

    return PrintableConsole(
        stderr=stderr, quiet=stderr and _quiet, markup=False, emoji=False, highlight=False, soft_wrap=not wrap
    )


def _write(text: str, error: bool = False) -> None:
    """Write at once, so that a full disk behind a redirection is told as what it is."""
    try:
        print(text, end="", flush=True, file=sys.stderr if error else sys.stdout)
    except BrokenPipeError:
        raise
    except OSError as fault:
        raise OSError(fault.errno, fault.strerror, "standard error" if error else "standard output") from fault


def take_any_character() -> None:
    """Let characters that an output's encoding lacks be escaped, where Python would end with an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
