"""`glider evaluate`: routers x tasks of a run file, resumable."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field

from glider.cli.arguments import JsonOption, KeyOption
from glider.cli.options import with_settings
from glider.cli.terminal import note_log, plain_table
from glider.config import Config
from glider.jobs.placement import Placement
from glider.terminal import console, say, say_json

if TYPE_CHECKING:
    from glider.evaluation.run_table import Entry
    from glider.evaluation.runs import Run
    from glider.jobs.base import Executor, JobResult


def register(app: typer.Typer, name: str, text: str) -> None:
    command = with_settings(Changes, "changes")(evaluate)
    app.command(name, help=text)(with_settings(Placement, "placement", ("checkpoint_steps",))(command))


class Changes(Config):
    """What one call of a run does otherwise than its file says."""

    dtype: str | None = Field(default=None, description="Instead of the run's: float32, bfloat16, ...")
    device: str | None = Field(default=None, description="Instead of the run's: cpu, cuda, ...")
    engine: Literal["transformers", "vllm"] | None = Field(
        default=None, description="Instead of the run's: transformers, vllm."
    )
    batch_tokens: str | None = Field(
        default=None, description="Tokens that run together: a number, or auto to measure what pays."
    )


def evaluate(
    run_file: Annotated[Path, typer.Argument(metavar="RUN", help="YAML: pool, routers, sets of tasks.")],
    placement: Placement,
    changes: Changes,
    out: Annotated[Path, typer.Option("--out", help="Directory of the results, one JSON for each router and task.")],
    router: Annotated[
        list[str] | None, typer.Option("--router", help="This router of the run only (repeatable).")
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="This task of the run only (repeatable).")] = None,
    only_set: Annotated[
        list[str] | None, typer.Option("--set", help="This set of tasks of the run only (repeatable).")
    ] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate what is missing, then print each router's mean on each set; exit code 1 if a cell failed.

    If it is interrupted, the same command continues where it stopped. What changed since is
    evaluated again.
    """
    from glider.cli.terminal import quiet_libraries
    from glider.evaluation.budgets import tokens_of
    from glider.evaluation.run_plan import RunPlan
    from glider.evaluation.run_table import table
    from glider.evaluation.runs import Run

    quiet_libraries()
    executor = placement.make(keep=True)
    update: dict[str, Any] = changes.model_dump(exclude_none=True)
    if changes.batch_tokens:
        update["batch_tokens"] = tokens_of(changes.batch_tokens)
    if key:
        update["require_key"] = key.absolute()
    plan = RunPlan.read(run_file).model_copy(update=update)
    run = Run(plan, run_file.parent, out, router or (), task or (), only_set or ())
    results = _run(run, executor)
    _print(table(run), results, as_json)
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)


def _run(run: "Run", executor: "Executor") -> "list[JobResult]":
    """How each cell ended, with bars on the way: of the cells, and of the rows of those at work."""
    from glider.progress import Bars

    results: list[JobResult] = []
    with Bars(resumes=True) as bars:
        report = lambda name, text, share: bars.update("rows", share, f"{name}, {text}")  # noqa: E731
        for result in run.go(report, executor):
            results.append(result)
            bars.update("cells", len(results) / len(run.cells), f"{len(results)}/{len(run.cells)}")
            if result.status == "failed":
                bars.note(f"{result.job.name}: {result.message}")
                note_log(bars, result)
    return results


def _print(entries: "list[Entry]", results: "list[JobResult]", as_json: bool) -> None:
    """The table, and how the cells ended."""
    if as_json:
        faults = [
            {"router": cell.plan.label, "set": cell.task.set, "task": cell.task.name, "fault": result.message}
            for result in results
            if result.status == "failed"
            for cell in [result.job]
        ]
        say_json({"entries": [asdict(entry) for entry in entries], "failed": faults})
    else:
        _print_table(entries)
        say(", ".join(f"{count} {status}" for status, count in Counter(r.status for r in results).items()))


def _print_table(entries: "list[Entry]") -> None:
    from glider.evaluation.harm import shares_text

    routers = list(dict.fromkeys(entry.router for entry in entries))
    sets = list(dict.fromkeys(entry.set for entry in entries))
    shown = plain_table("router", *sets)
    at = {(entry.router, entry.set): entry for entry in entries}
    for router in routers:
        shown.add_row(router, *(_text(at[router, name]) for name in sets))
    terminal = console()
    terminal.print(shown)
    for entry in entries:
        if entry.harm is not None:
            verdicts = f"; {shares_text(entry.verdicts)}" if entry.verdicts else ""
            terminal.print(f"{entry.router} on {entry.set} beside base: {entry.harm.text}{verdicts}")


def _text(entry: "Entry") -> str:
    if entry.score is None or entry.rows_interval is None:
        return f"{len(entry.missing)} missing" if entry.missing else "-"
    low, high = entry.rows_interval
    star = "*" if entry.p_holm is not None and entry.p_holm < 0.05 else ""
    return f"{100 * entry.score:.1f}{star} ({100 * low:.1f}-{100 * high:.1f}, {entry.tasks})"
