"""`glider lm-eval-tasks`: JSON Lines as tasks of lm-evaluation-harness."""

from pathlib import Path
from typing import Annotated

import typer

from glider.cli.arguments import JsonOption
from glider.terminal import say, say_json


def register(app: typer.Typer, name: str, text: str) -> None:
    app.command(name, help=text)(lm_eval_tasks)


def lm_eval_tasks(
    files: Annotated[list[Path], typer.Argument(help="Rows with input, output, and choices or references.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the configs, for --include_path.")],
    split: Annotated[str | None, typer.Option("--split", help="Use the rows of this split only.")] = "test",
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Use so many rows, drawn by --seed.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="For --rows.")] = 0,
    metric: Annotated[
        str, typer.Option("--metric", help="For free text: exact_match, squad, rougeL, bleu.")
    ] = "rougeL",
    as_json: JsonOption = False,
) -> None:
    """Write a task config for each file. Then: glider lm-eval --include_path OUT --tasks NAME."""
    from typing import cast

    from glider.errors import ConfigError
    from glider.evaluation.lm_eval_tasks import write_tasks
    from glider.evaluation.metrics import TEXT_METRICS, TextMetric

    if metric not in TEXT_METRICS:
        raise ConfigError(f"a metric of {', '.join(TEXT_METRICS)}", metric, "Check the spelling.")
    names = write_tasks(files, out, split=split, rows=rows, seed=seed, metric=cast(TextMetric, metric))
    if as_json:
        say_json({"include_path": str(out), "tasks": names}, indent=None)
    else:
        say("\n".join(names))
