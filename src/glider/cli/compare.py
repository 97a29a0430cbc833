"""`glider compare`: several routers on a user's own rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from glider.cli.arguments import BaseUrlOption, DescriberOption, JsonOption, KeyOption, PoolOption, make_describer
from glider.cli.options import with_settings
from glider.cli.terminal import plain_table
from glider.config import Config
from glider.inference.spec import BaseSpec
from glider.terminal import console, say_json

if TYPE_CHECKING:
    from glider.data.rows import Row
    from glider.evaluation.compare import Entry


class CompareConfig(Config):
    """Which routers are compared, and on which rows."""

    routers: str = Field(
        default="base,phatgoose,glider",
        description="Comma-separated, with settings as in merge(method=ties); the others are tested against the first.",
    )
    split: str | None = Field(default=None, description="Use the rows of this split only.")
    columns: str = Field(default="", description="Columns of the rows, as input=question,output=answer.")
    rows: int | None = Field(default=None, ge=1, description="Use so many rows, drawn by --seed.")
    seed: int = Field(default=0, description="For --rows.")
    fewshot: Path | None = Field(default=None, description="Rows of the training split, for routers fitted on some.")
    fewshot_rows: int = Field(default=5, ge=1, description="How many of them.")
    max_new_tokens: int = Field(default=48, ge=1, description="Longest answer.")


def register(app: typer.Typer, name: str, text: str) -> None:
    command = with_settings(BaseSpec, "spec")(with_settings(CompareConfig)(compare))
    app.command(name, help=text)(command)


def compare(
    data: Annotated[Path, typer.Option("--data", help="Rows with input, output, and choices or references.")],
    spec: BaseSpec,
    config: CompareConfig,
    pool: PoolOption = "demo",
    key: KeyOption = None,
    describer: DescriberOption = None,
    base_url: BaseUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score routers on the same rows: score with 95 % bootstrap interval, paired p against the first, tokens/s, memory.

    Rows with choices are scored by length-normalised rank classification, rows without by ROUGE-L and exact match.
    """
    from glider.cli.terminal import quiet_libraries
    from glider.data.records import columns_of
    from glider.data.rows import read_rows
    from glider.errors import ConfigError
    from glider.evaluation.compare import compare as run
    from glider.routing.specification import listed

    names = listed(config.routers)
    if not names:
        raise ConfigError("at least one router in --routers", "none", "Write --routers base,glider.")
    columns = columns_of(config.columns)
    sample = _drawn(read_rows(data, config.split, columns), config.rows, config.seed)
    others = [] if config.fewshot is None else read_rows(config.fewshot, columns=columns)
    shots = _fewshot(others, sample)[: config.fewshot_rows]
    writer = make_describer(describer, base_url)
    quiet_libraries()
    with _bars(len(sample)) as tick:
        entries = list(
            run(
                pool,
                sample,
                names,
                base=spec,
                fewshot=shots,
                max_new_tokens=config.max_new_tokens,
                describer=writer,
                require_key=key,
                tick=tick,
            )
        )
    if as_json:
        head = {"pool": pool, "data": str(data), "rows": len(sample), "seed": config.seed}
        say_json({**head, "entries": [asdict(entry) for entry in entries]})
    else:
        _print_table(entries, len(sample))


def _drawn(rows: list["Row"], count: int | None, seed: int) -> list["Row"]:
    import random

    return rows if count is None else random.Random(seed).sample(rows, min(count, len(rows)))


def _fewshot(rows: list["Row"], evaluated: list["Row"]) -> list["Row"]:
    """Rows of the training split, or of no split, none of which is evaluated."""
    taken = {(row.input, row.output) for row in evaluated}
    return [row for row in rows if row.split in (None, "train") and (row.input, row.output) not in taken]


@contextmanager
def _bars(rows: int) -> Iterator[Callable[[str, int], None]]:
    """A progress bar for each router on a terminal's stderr; yields what moves it."""
    from glider.progress import Bars

    with Bars() as bars:
        yield lambda name, done: bars.update(name, done / rows, f"{done}/{rows} rows")


def _print_table(entries: list["Entry"], rows: int) -> None:
    from glider.evaluation.harm import shares_text

    first = entries[0]
    heads = ["router", first.metric, "95 %", *(["exact"] if first.exact is not None else [])]
    table = plain_table(*heads, f"p vs {first.router}", "tokens/s", "experts MB", "")
    for entry in entries:
        exact = [] if first.exact is None else [f"{100 * (entry.exact or 0):.1f}"]
        p_value = "" if entry.p_value is None else f"{entry.p_value:.3f}"
        interval = f"{100 * entry.low:.1f}-{100 * entry.high:.1f}"
        costs = (f"{entry.tokens_per_second:.0f}", f"{entry.expert_megabytes:.1f}")
        table.add_row(entry.router, f"{100 * entry.score:.1f}", interval, *exact, p_value, *costs, entry.note)
    shown = console()
    shown.print(f"{rows} rows")
    shown.print(table)
    for entry in entries:
        if entry.harm is not None:
            verdicts = f"; {shares_text(entry.verdicts)}" if entry.verdicts else ""
            shown.print(f"{entry.router} beside base: {entry.harm.text}{verdicts}")
