"""One progress line for each expert of a plan."""

from collections.abc import Sequence


class BuildProgress:
    """Lines on stderr: what each expert does now; plain lines at its end only where stderr is no terminal."""

    def __init__(self, names: Sequence[str]):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description:>24}"), BarColumn(bar_width=20), TextColumn("{task.fields[text]}"))
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._tasks = {name: self._bar.add_task(name, total=1.0, text="waiting") for name in names}

    def __enter__(self) -> "BuildProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, name: str, text: str, share: float) -> None:
        """Show what an expert does now."""
        self._bar.update(self._tasks[name], completed=share, text=text)

    def finish(self, name: str, status: str) -> None:
        """Show how an expert ended."""
        self._bar.update(self._tasks[name], completed=1.0, text=status)
        if not self._console.is_terminal:
            self._console.print(f"{name}: {status}", highlight=False)
