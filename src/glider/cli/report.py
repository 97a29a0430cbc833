"""`glider report`: what a pool and its evaluations look like, as figures and pages."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from glider.cli.arguments import SKIPPED, GlobalOption, JsonOption, KeyOption, PoolOption, load_model
from glider.cli.options import with_settings
from glider.config import Config
from glider.inference.spec import ModelSpec
from glider.terminal import say, say_json

DataOption = Annotated[
    list[str] | None, typer.Option("--data", help="Rows of a task, or of several by a wildcard; repeatable.")
]
SplitOption = Annotated[str | None, typer.Option("--split", help="Of the files of --data.")]
SeedOption = Annotated[int, typer.Option("--seed", help="For --rows.")]
DescriptionsOption = Annotated[
    Path | None, typer.Option("--descriptions", help="JSON: task -> one sentence, embedded in place of its queries.")
]


def register(app: typer.Typer, name: str, text: str) -> None:
    nouns = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
    for command in (paper, with_settings(Drawn, "drawn")(scores), with_settings(ModelSpec, "spec", SKIPPED)(routing)):
        nouns.command()(command)
    app.add_typer(nouns, name=name)


class Drawn(Config):
    """Which rows of each file are read."""

    split: str | None = Field(default="test", description="Of the files of --data.")
    rows: int = Field(default=24, ge=1, description="Of each file.")
    seed: int = Field(default=0, description="For --rows.")


def paper(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="Results of `glider evaluate`.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory of the report; default: `report` in the results.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="Which tables of what; default: report.yaml in the results.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the tables and figures of an evaluation of its JSON.

    They are Markdown, LaTeX and one self-contained HTML page.
    """
    from glider.progress import Bars
    from glider.report import paper as pages

    place = out or results / "report"
    with Bars() as bars:
        report = pages.write_report(results, place, plan, tick=lambda text: bars.update("Report", None, text))
    if as_json:
        say_json(pages.as_json(report))
        return
    missing = f"; missing results: {len(report.lacks)}" if report.lacks else ""
    tables, figures = _count(len(report.tables), "table"), _count(len(report.pictures), "figure")
    say(f"{place}: {tables} and {figures} in report.html, .md, .tex{missing}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def scores(
    drawn: Drawn,
    pool: PoolOption = "demo",
    key: KeyOption = None,
    signal: GlobalOption = None,
    data: DataOption = None,
    profiles: Annotated[
        bool, typer.Option("--profiles/--no-profiles", help="Show the experts' own held-back queries.")
    ] = True,
    descriptions: DescriptionsOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A picture (.png, .svg, .pdf) or the numbers (.json).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw every expert's global score for every task.

    It is the paper's Figure 3, with the threshold p of the pool.
    """
    from glider.cli.terminal import quiet_libraries
    from glider.errors import ConfigError
    from glider.report.style import require_format

    if out is None and not as_json:
        raise ConfigError("--out FILE or --json", "neither", "Give --out scores.png.")
    if out is not None:
        require_format(out, ".json")
    quiet_libraries()
    from glider.evaluation.run_plan import read_descriptions
    from glider.files.disk import write_json
    from glider.inference.spec import open_pool
    from glider.report.global_scores import pool_scores, task_files
    from glider.report.scores_figure import draw_scores

    result = pool_scores(
        open_pool(pool, key),
        signal=signal,
        files=task_files(data or []),
        profiles=profiles,
        descriptions=read_descriptions(descriptions) if descriptions else None,
        split=drawn.split,
        rows=drawn.rows,
        seed=drawn.seed,
    )
    numbers = result.model_dump(mode="json")
    if out is not None and out.suffix == ".json":
        write_json(out, numbers)
    elif out is not None:
        draw_scores(result, out)
    if as_json:
        say_json(numbers)
    else:
        say(f"{out}: {len(result.tasks)} tasks x {len(result.experts)} experts, {result.signal}, p = {result.p:g}")


def routing(
    data: Annotated[list[str], typer.Option("--data", help="Rows of a task, or several by a wildcard; repeatable.")],
    out: Annotated[
        Path, typer.Option("--out", help="The numbers (.json, for `report paper`) or a picture (.png, .svg, .pdf).")
    ],
    spec: ModelSpec,
    descriptions: DescriptionsOption = None,
    split: SplitOption = "test",
    rows: Annotated[int, typer.Option("--rows", min=1, help="Prompts of each file.")] = 8,
    seed: SeedOption = 0,
) -> None:
    """Draw which experts every site uses on each task.

    It is the paper's Figure 2, with the task's own expert marked.
    """
    from itertools import count

    from glider.progress import Bars
    from glider.report.style import require_format

    require_format(out, ".json")
    from glider.evaluation.run_plan import read_descriptions
    from glider.report.global_scores import task_files
    from glider.report.routing_map import routing_map

    files = task_files(data)
    described = read_descriptions(descriptions) if descriptions else None
    model = load_model(spec)
    with Bars() as bars:
        done = count(1)
        result = routing_map(
            model,
            str(spec.router),
            files,
            descriptions=described,
            split=split,
            rows=rows,
            seed=seed,
            tick=lambda name: bars.update("Routing", next(done) / len(files), name),
        )
    if out.suffix == ".json":
        result.write(out)
    else:
        result.draw(out)
    say(f"{out}: {len(result.tasks)} tasks x {len(result.sites)} sites x {len(result.experts)} experts, {spec.router}")
