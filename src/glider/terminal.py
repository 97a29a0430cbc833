"""The one way to a terminal: what is printed may be a stranger's text, and is made printable here.

Lines, JSON and tables alike: no escape sequence, control character or mark of writing direction passes, and square
brackets are square brackets, not styles.
"""

import sys
from typing import Any

from glider.printable import dump_json, piece, visible


def say(text: str = "", *, error: bool = False) -> None:
    """Print a text on lines of its own; an `error` on stderr."""
    print(visible(text), file=sys.stderr if error else sys.stdout)


def say_json(value: Any, indent: int | None = 2) -> None:
    """Print a value as JSON: the same value to whoever parses it, with invisible characters escaped."""
    print(dump_json(value, indent))


def say_piece(text: str) -> None:
    """Print a part of an answer as it comes, without a line break of our own."""
    print(piece(text), end="", flush=True)


def console(*, stderr: bool = False, wrap: bool = True) -> Any:
    """rich's console for our tables and bars: texts are taken as they are, and styles given as such."""
    from rich.console import Console
    from rich.text import Text

    class PrintableConsole(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(visible(text), **how)

    return PrintableConsole(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=not wrap)


def take_any_character() -> None:
    """Let characters that an output's encoding lacks be escaped, where Python would end with an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
