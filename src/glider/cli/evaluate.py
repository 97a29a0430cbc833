"""`glider evaluate`: routers x tasks of a run file, resumable."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glider.cli.arguments import JsonOption

if TYPE_CHECKING:
    from glider.evaluation.run_table import Entry
    from glider.evaluation.runs import Outcome


def register(app: typer.Typer, name: str, text: str) -> None:
    app.command(name, help=text)(evaluate)


def evaluate(
    run_file: Annotated[Path, typer.Argument(metavar="RUN", help="YAML: pool, routers, sets of tasks.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the results, one JSON for each router and task.")],
    router: Annotated[
        list[str] | None, typer.Option("--router", help="This router of the run only (repeatable).")
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="This task of the run only (repeatable).")] = None,
    only_set: Annotated[
        list[str] | None, typer.Option("--set", help="This set of tasks of the run only (repeatable).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate what is missing, then print each router's mean on each set; exit code 1 if a cell failed.

    The same command goes on after an interruption, and evaluates anew what changed.
    """
    from rich.console import Console
    from rich.progress import Progress

    from glider.cli.terminal import quiet_libraries
    from glider.evaluation.run_plan import RunPlan
    from glider.evaluation.run_table import table
    from glider.evaluation.runs import Run

    quiet_libraries()
    run = Run(RunPlan.read(run_file), run_file.parent, out, router or (), task or (), only_set or ())
    console = Console(stderr=True)
    outcomes: list[Outcome] = []
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        cells, rows = bar.add_task("cells", total=len(run.cells)), bar.add_task("rows", total=None)

        def tick(router: str, task: str, done: int) -> None:
            bar.update(rows, description=f"{router}: {task}", completed=done)

        for outcome in run.go(tick):
            outcomes.append(outcome)
            bar.advance(cells)
            if outcome.status == "failed":
                cell = outcome.cell
                console.print(f"{cell.plan.label}: {cell.task.set}/{cell.task.name}: {outcome.message}", markup=False)
    entries = table(run)
    if as_json:
        failed = [
            {"router": o.cell.plan.label, "set": o.cell.task.set, "task": o.cell.task.name, "fault": o.message}
            for o in outcomes
            if o.status == "failed"
        ]
        print(json.dumps({"entries": [asdict(entry) for entry in entries], "failed": failed}, indent=2))
    else:
        _print_table(entries)
        print(", ".join(f"{count} {status}" for status, count in Counter(o.status for o in outcomes).items()))
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def _print_table(entries: "list[Entry]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    routers = list(dict.fromkeys(entry.router for entry in entries))
    sets = list(dict.fromkeys(entry.set for entry in entries))
    shown = Table("router", *map(escape, sets), box=None, pad_edge=False)
    at = {(entry.router, entry.set): entry for entry in entries}
    for router in routers:
        shown.add_row(Text(router), *(_text(at[router, name]) for name in sets))
    Console(highlight=False).print(shown)


def _text(entry: "Entry") -> str:
    if entry.score is None or entry.rows_interval is None:
        return f"{len(entry.missing)} missing" if entry.missing else "-"
    low, high = entry.rows_interval
    star = "*" if entry.p_holm is not None and entry.p_holm < 0.05 else ""
    return f"{100 * entry.score:.1f}{star} ({100 * low:.1f}-{100 * high:.1f}, {entry.tasks})"
