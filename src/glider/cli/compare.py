"""`glider compare`: several routers on a user's own rows."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glider.cli.arguments import (
    BaseOption,
    BaseUrlOption,
    DescriberOption,
    JsonOption,
    PoolOption,
    make_describer,
)

if TYPE_CHECKING:
    from glider.evaluation.compare import Entry


def register(app: typer.Typer, name: str, text: str) -> None:
    app.command(name, help=text)(compare)


def compare(
    data: Annotated[Path, typer.Option("--data", help="JSON Lines with input, output, and choices or references.")],
    pool: PoolOption = "demo",
    routers: Annotated[
        str, typer.Option("--routers", help="Names, comma-separated; the others are tested against the first.")
    ] = "base,phatgoose,glider",
    base: BaseOption = None,
    split: Annotated[str | None, typer.Option("--split", help="Use the rows of this split only.")] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Use so many rows, drawn by --seed.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="For --rows.")] = 0,
    fewshot: Annotated[
        Path | None, typer.Option("--fewshot", help="Rows of the training split, for lorahub's search.")
    ] = None,
    fewshot_rows: Annotated[int, typer.Option("--fewshot-rows", min=1, help="How many of them.")] = 5,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 48,
    describer: DescriberOption = None,
    base_url: BaseUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score routers on the same rows: score with 95 % bootstrap interval, paired p against the first, tokens/s, memory.

    Rows with choices are scored by length-normalised rank classification, rows without by ROUGE-L and exact match.
    """
    import random

    from rich.console import Console
    from rich.progress import Progress

    from glider.cli.terminal import quiet_libraries
    from glider.contribute.examples import read_rows
    from glider.errors import ConfigError
    from glider.evaluation.compare import compare as run

    names = [name.strip() for name in routers.split(",") if name.strip()]
    if not names:
        raise ConfigError("at least one router in --routers", "none", "Write --routers base,glider.")
    chosen = read_rows(data, split)
    if rows is not None:
        chosen = random.Random(seed).sample(chosen, min(rows, len(chosen)))
    shots = [] if fewshot is None else read_rows(fewshot, None)
    shots = [row for row in shots if row.split in (None, "train")][:fewshot_rows]
    writer = make_describer(describer, base_url)
    quiet_libraries()
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        tasks = {}

        def tick(name: str, done: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=len(chosen))
            bar.update(tasks[name], completed=done)

        entries = list(
            run(
                *(pool, chosen, names),
                base=base,
                fewshot=shots,
                max_new_tokens=max_new_tokens,
                describer=writer,
                tick=tick,
            )
        )
    if as_json:
        told = {"data": str(data), "rows": len(chosen), "seed": seed, "entries": [asdict(entry) for entry in entries]}
        print(json.dumps(told, indent=2))
    else:
        _print_table(entries, len(chosen))


def _print_table(entries: list["Entry"], rows: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    first = entries[0]
    heads = ["router", first.metric, "95 %", *(["exact"] if first.exact is not None else [])]
    table = Table(*heads, f"p vs {first.router}", "tokens/s", "experts MB", "", box=None, pad_edge=False)
    for entry in entries:
        exact = [] if first.exact is None else [f"{100 * (entry.exact or 0):.1f}"]
        p_value = "" if entry.p_value is None else f"{entry.p_value:.3f}"
        interval = f"{100 * entry.low:.1f}-{100 * entry.high:.1f}"
        costs = (f"{entry.tokens_per_second:.0f}", f"{entry.expert_megabytes:.1f}")
        table.add_row(Text(entry.router), f"{100 * entry.score:.1f}", interval, *exact, p_value, *costs, entry.note)
    console = Console(highlight=False)
    console.print(f"{rows} rows")
    console.print(table)
