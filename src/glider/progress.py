"""Progress on stderr, in one place: bars on a terminal, plain lines or nothing elsewhere."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from glider.printable import printable
from glider.terminal import console

Step = TypeVar("Step")
Tick = Callable[[int], None]
"""Receives the number done."""
NamedTick = Callable[[str, int], None]
"""Receives a name and the number done under it."""
CountTick = Callable[[str, int, int], None]
"""Receives a name, the number done under it, and how many there are."""
RESUMES = "If it is interrupted, the same command continues where it stopped."
_PATIENCE = 2.0  # seconds: what looks like taking less draws nothing


class Bars:
    """A bar for each name, with a text beside it.

    On a terminal the bars vanish at the end unless they are to `stay`. Elsewhere `say` and `finish` print plain lines,
    and nothing else is shown. Work that `resumes` says so when it is interrupted.
    """

    def __init__(self, *, stay: bool = False, resumes: bool = False):
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console, self._resumes = console(stderr=True, wrap=False), resumes
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
        )
        shown = self._console.is_terminal
        self._bar = Progress(*columns, console=self._console, disable=not shown, transient=not stay)
        self._tasks = {}

    def __enter__(self) -> "Bars":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self._bar.stop()
        if self._resumes and kind is not None and issubclass(kind, KeyboardInterrupt):
            self._console.print("glider: interrupted; the same command continues where it stopped.")

    def update(self, name: str, share: float | None, text: str = "") -> None:
        """Show what is done now, and the share of it that is done (None: unknown)."""
        text = printable(text)
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(printable(name), total=1.0 if share is not None else None, text=text)
        total = None if share is None else 1.0
        self._bar.update(self._tasks[name], total=total, completed=share or 0.0, text=text)

    def finish(self, name: str, text: str) -> None:
        """Show how something ended."""
        self.update(name, 1.0, text)
        self.say(f"{name}: {text}")

    def say(self, line: str) -> None:
        """Print a line where no bars are shown."""
        if not self._console.is_terminal:
            self._console.print(line)

    def note(self, line: str) -> None:
        """Print a line above the bars, or by itself."""
        self._console.print(line)


def counter(bars: Bars, name: str) -> Callable[[int, int], None]:
    """A callback that shows a count of steps as a bar; it receives the steps done and their number."""
    return lambda done, of: bars.update(name, done / of if of else 0.0, f"{done}/{of}")


def track(steps: Iterable[Step], total: int, name: str) -> Iterator[Step]:
    """The steps, with a bar once they look like taking over two seconds."""
    began, bars = time.monotonic(), None
    try:
        for done, step in enumerate(steps, start=1):
            yield step
            if bars is None and (time.monotonic() - began) * total / done > _PATIENCE:
                bars = Bars().__enter__()
            if bars is not None:
                bars.update(name, done / total, f"{done}/{total}")
    finally:
        if bars is not None:
            bars.__exit__()
