"""`glider report`: what a pool and its evaluations look like, as figures and pages."""

import json
from pathlib import Path
from typing import Annotated

import typer

from glider.cli.arguments import GlobalOption, JsonOption, PoolOption

DataOption = Annotated[
    list[str] | None, typer.Option("--data", help="Rows of a task (JSON Lines), or several by a wildcard; repeatable.")
]
SplitOption = Annotated[str | None, typer.Option("--split", help="Of the files of --data.")]
SeedOption = Annotated[int, typer.Option("--seed", help="For --rows.")]
DescriptionsOption = Annotated[
    Path | None, typer.Option("--descriptions", help="JSON: task -> one sentence, embedded in place of its queries.")
]


def register(app: typer.Typer, name: str, text: str) -> None:
    nouns = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
    nouns.command()(scores)
    app.add_typer(nouns, name=name)


def scores(
    pool: PoolOption = "demo",
    signal: GlobalOption = None,
    data: DataOption = None,
    profiles: Annotated[
        bool, typer.Option("--profiles/--no-profiles", help="Show the experts' own held-back queries.")
    ] = True,
    descriptions: DescriptionsOption = None,
    split: SplitOption = "test",
    rows: Annotated[int, typer.Option("--rows", min=1, help="Of each file.")] = 24,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="A picture (.png, .svg, .pdf) or the numbers (.json).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Every expert's global score for every task, and the threshold p of the pool: the paper's Figure 3."""
    from glider.cli.terminal import quiet_libraries
    from glider.errors import ConfigError
    from glider.report.style import require_format

    if out is None and not as_json:
        raise ConfigError("--out FILE or --json", "neither", "Give --out scores.png.")
    if out is not None:
        require_format(out, ".json")
    quiet_libraries()
    from glider.evaluation.run_plan import read_descriptions
    from glider.experts.disk import write_json
    from glider.model import open_pool
    from glider.report.global_scores import pool_scores, task_files
    from glider.report.scores_figure import draw_scores

    found = pool_scores(
        *(open_pool(pool), signal, task_files(data or [])),
        profiles=profiles,
        descriptions=read_descriptions(descriptions) if descriptions else None,
        split=split,
        rows=rows,
        seed=seed,
    )
    told = found.model_dump(mode="json")
    if out is not None and out.suffix == ".json":
        write_json(out, told)
    elif out is not None:
        draw_scores(found, out)
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        print(f"{out}: {len(found.tasks)} tasks x {len(found.experts)} experts, {found.signal}, p = {found.p:g}")
