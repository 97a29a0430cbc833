"""`glider expert train`: data in, expert out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from glider.cli.arguments import BaseUrlOption, make_describer
from glider.cli.hub import pull_expert, push_expert
from glider.cli.import_official import import_official
from glider.cli.options import with_settings
from glider.config import EMBEDDED_EMBEDDER
from glider.contribute.settings import TrainConfig
from glider.inference.spec import BaseSpec
from glider.terminal import say

if TYPE_CHECKING:
    from glider.contribute.loop import Progress
    from glider.contribute.protocol import StageTick

RowsArgument = Annotated[Path, typer.Argument(help="Rows with input and output: JSON Lines, JSON, CSV, TSV, Parquet.")]
OutOption = Annotated[Path, typer.Option("--out", help="The expert's new directory; its name is the expert's name.")]
TaskDescriptionOption = Annotated[
    str | None, typer.Option("--description", help="One sentence: the task. Default: the rows' definition.")
]
TaskOption = Annotated[str | None, typer.Option("--task", help="Name of the task. Default: the expert's name.")]
LicenceOption = Annotated[str | None, typer.Option("--licence", help="Licence of the expert (SPDX).")]


def register(app: typer.Typer, name: str, text: str) -> None:
    nouns = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
    nouns.command()(_with_both(train))
    nouns.command("import")(_with_both(import_))
    nouns.command("import-official")(import_official)
    nouns.command()(_with_both(gates))
    nouns.command()(describe)
    nouns.command()(_with_both(profile))
    nouns.command("push")(push_expert)
    nouns.command("pull")(pull_expert)
    app.add_typer(nouns, name=name)


def _with_both(command: Callable) -> Callable:
    """Options of the base model and of training."""
    return with_settings(BaseSpec, "spec")(with_settings(TrainConfig)(command))


def train(
    data: RowsArgument,
    out: OutOption,
    config: TrainConfig,
    spec: BaseSpec,
    description: TaskDescriptionOption = None,
    task: TaskOption = None,
    licence: LicenceOption = None,
) -> None:
    """Train an expert: LoRA, gates, profile, description.

    If it is interrupted, the same command continues where it stopped.
    """
    from glider.cli.terminal import quiet_libraries
    from glider.contribute.protocol import train_expert

    quiet_libraries()
    with _progress() as report:
        expert = train_expert(
            data, spec, out, config, description=description, task=task, licence=licence, report=report
        )
    record = expert.card.training
    stages = ", ".join(f"{stage} {_best(record[stage])}" for stage in ("lora", "gates"))
    say(f"{expert.directory}: {len(expert.sites)} sites, validation loss: {stages}")
    _tell_pool(expert.directory, new=True)


def import_(
    adapter: Annotated[str, typer.Argument(help="Directory of a PEFT LoRA adapter, or its hub id.")],
    out: OutOption,
    config: TrainConfig,
    spec: BaseSpec,
    data: Annotated[
        Path | None, typer.Option("--data", help="Rows of its task, for its gates and its profile.")
    ] = None,
    description: TaskDescriptionOption = None,
    task: TaskOption = None,
    licence: LicenceOption = None,
) -> None:
    """Make an expert of a PEFT LoRA adapter.

    The adapter's files stay as they are. With --data its gates and profile are made too. The base model is by default
    the one that the adapter names. What is left out here `glider expert gates`, `describe` and `profile` add. If it is
    interrupted, the same command continues where it stopped.
    """
    from glider.cli.terminal import quiet_libraries
    from glider.contribute.adopt import adopt

    quiet_libraries()
    with _progress() as report:
        expert = adopt(
            adapter, spec, out, config, data=data, description=description, task=task, licence=licence,
            report=report,
        )  # fmt: skip
    gates = sum(site.has_gate for site in expert.sites.values())
    parts = [f"{gates} gates" if gates else "no gates", "described" if expert.card.description else "no description"]
    say(f"{expert.directory}: {len(expert.sites)} sites, {', '.join(parts)}")
    _tell_pool(expert.directory, new=True)


def gates(
    expert: Annotated[Path, typer.Argument(help="Directory of an expert.")],
    data: RowsArgument,
    config: TrainConfig,
    spec: BaseSpec,
    how: Annotated[
        Literal["trained", "mean"], typer.Option("--how", help="Train them, or take each site's mean input.")
    ] = "trained",
) -> None:
    """Make the gates of an expert from rows of its task.

    Its LoRA is untouched. Of the settings, those of the LoRA (rank, alpha, sites, steps) are not used.
    """
    from glider.cli.terminal import quiet_libraries
    from glider.contribute.adopt import make_gates
    from glider.experts.expert import Expert

    quiet_libraries()
    before = sum(site.has_gate for site in Expert.open(expert).sites.values())
    with _progress() as report:
        gated = make_gates(expert, data, spec, config, report, how)
    quality = f"validation loss: {_best(gated.card.training['gates'])}" if how == "trained" else "mean inputs"
    instead = f", in place of {before}" if before else ""
    say(f"{gated.directory}: {len(gated.sites)} gates{instead}, {quality}")
    _tell_pool(expert)


def describe(
    expert: Annotated[Path, typer.Argument(help="Directory of an expert.")],
    description: Annotated[
        str | None, typer.Argument(help="One sentence: the task and the skill it needs. Or give --describer.")
    ] = None,
    describer: Annotated[
        str | None, typer.Option("--describer", help="Who writes it: openai:MODEL, local:MODEL.")
    ] = None,
    base_url: BaseUrlOption = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Rows for the describer to read. Default: the card's examples.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many of them.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Which of them.")] = 0,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="How it is asked, such as guarded-3@1. Default: by the number of rows."),
    ] = None,
    embedder: Annotated[
        str, typer.Option("--embedder", help="sentence-transformers model, or openai:MODEL.")
    ] = EMBEDDED_EMBEDDER,
    prefix: Annotated[str, typer.Option("--embedder-prefix", help="Text put before what is embedded.")] = "",
) -> None:
    """Give an expert its description, and the embedding of it.

    The global term compares queries with it. The sentence is yours, or a describer's that reads rows of the task.
    """
    from glider.cli.terminal import quiet_libraries
    from glider.errors import ConfigError

    if (description is None) == (describer is None):
        got = "neither" if description is None else "both"
        raise ConfigError("a description or --describer", got, "Give one of them.")
    writer = make_describer(describer, base_url)
    quiet_libraries()
    if writer is None:
        from glider.contribute.adopt import add_description

        result = add_description(expert, description or "", embedder, prefix)
        say(f"{result.directory}: described")
        _tell_pool(expert)
        return
    from glider.contribute.describing import describe_expert
    from glider.instructions.cache import cache
    from glider.instructions.prompts import prompt_named

    template = None if prompt is None else prompt_named(prompt)
    sample = {"data": data, "rows": rows, "seed": seed}
    result, written = describe_expert(expert, writer, embedder, prefix, **sample, prompt=template, cache=cache())
    spent = "from the cache" if written.cached else f"{written.tokens_in} tokens read, {written.tokens_out} written"
    say(f"{result.directory}: {written.text} ({written.source}, prompt {written.prompt}, {spent})")
    _tell_pool(expert)


def profile(
    expert: Annotated[Path, typer.Argument(help="Directory of an expert.")],
    data: RowsArgument,
    config: TrainConfig,
    spec: BaseSpec,
) -> None:
    """Make the profile of an expert from rows of its task.

    By it the expert's queries are known without an LLM. Of the settings only --validation, --stored and --seed are
    used.
    """
    from glider.cli.terminal import quiet_libraries
    from glider.contribute.adopt import make_profile

    quiet_libraries()
    result = make_profile(expert, data, spec, config).profile
    assert result is not None
    embedded = "with" if result.inputs is not None else "without"
    stored = "" if result.stored_inputs is None else f", {len(result.stored_inputs)} inputs stored"
    reserved = f"{len(result.held_back)} inputs held back{stored}"
    say(f"{expert}: {len(result.known[0])} n-grams, {reserved}, {embedded} embeddings")
    _tell_pool(expert)


def _tell_pool(expert: Path, new: bool = False) -> None:
    """Tell how a pool takes an expert up that it lacks or has otherwise; a new one, where no pool is yet, as well."""
    from glider.errors import GliderError
    from glider.experts.membership import is_to_be_added
    from glider.experts.pool import POOL_FILE

    place = expert if expert.name not in ("", "..") else expert.resolve()
    pool, name = place.parent, place.name
    if new and not (pool / POOL_FILE).exists():
        say(f"next: glider pool add {pool} {name}", error=True)
    with suppress(GliderError):  # what is wrong with the pool is no fault of the expert
        if is_to_be_added(pool, name):
            say(f"glider: {pool} does not have {name} as it is now; next: glider pool add {pool} {name}", error=True)


def _best(record: dict[str, Any]) -> str:
    loss = record["best_loss"]
    return f"{loss:.4f} at step {record['best_step']}" if loss is not None else "unknown (no validation rows)"


@contextmanager
def _progress() -> "Iterator[StageTick]":
    """Shows loss, tokens a second and time left; every tenth step as a plain line where stderr is no terminal."""
    from glider.progress import Bars

    with Bars(stay=True, resumes=True) as bars:

        def update(stage: str, progress: "Progress", steps: int) -> None:
            left = progress.seconds / progress.step * (steps - progress.step)
            speed = progress.tokens / progress.seconds
            text = f"{progress.step}/{steps}  loss {progress.loss:.3f}  {speed:.0f} tokens/s  {left:.0f} s left"
            if progress.validation:
                text += f"  validation {progress.validation[-1][1]:.3f}"
            bars.update(stage, progress.step / steps, text)
            if progress.step % 10 in (0, steps % 10):
                bars.say(f"{stage} {text}")

        yield update
