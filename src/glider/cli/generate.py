"""`glider generate`: a prompt in, text out."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field

from glider.cli.arguments import (
    SKIPPED,
    DescriptionOption,
    ExamplesOption,
    JsonOption,
    load_model,
    make_query,
    read_prompt,
    tell_unused,
)
from glider.cli.options import with_settings
from glider.config import Config
from glider.inference.spec import ModelSpec
from glider.jobs.placement import Placement
from glider.progress import RESUMES
from glider.terminal import say, say_json, say_piece

if TYPE_CHECKING:
    from glider.inference.answers import Answer
    from glider.inference.queries import Query


class Answering(Config):
    """How long answers are, and how they are drawn."""

    max_new_tokens: int = Field(default=64, ge=1, description="Longest answer.")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy.")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="For a temperature above 0.")
    truncate: bool = Field(default=False, description="Keep the end of a prompt that is too long.")


class PromptFile(Config):
    """A file of prompts, and the file of their answers."""

    data: Path | None = Field(default=None, description="A file of prompts instead, answered into --out.")
    out: Path | None = Field(default=None, description=f"File of their answers: JSON Lines, or .parquet. {RESUMES}")
    columns: str = Field(default="", description="Columns of the file, as input=question.")
    batch_size: int = Field(default=64, ge=1, description="Prompts of the file at a time.")


def register(app: typer.Typer, name: str, text: str) -> None:
    command = with_settings(ModelSpec, "spec", SKIPPED)(generate)
    command = with_settings(Answering, "answering")(with_settings(PromptFile, "file")(command))
    app.command(name, help=text)(with_settings(Placement, "placement", ("checkpoint_steps",))(command))


def generate(
    spec: ModelSpec,
    placement: Placement,
    answering: Answering,
    file: PromptFile,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads it from standard input.")] = None,
    description: DescriptionOption = None,
    examples: ExamplesOption = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print text as it is written.")] = False,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option("--engine", help="What runs the model: transformers or vllm.")
    ] = "transformers",
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt with a routed pool, or a file of them, whose answers appear when all are there."""
    from glider.data.rows import read_pairs
    from glider.errors import ConfigError

    _require_one_source(prompt, file, stream, engine)
    if file.data is not None and file.out is not None:
        settings = {**answering.model_dump(), "description": description, "batch_size": file.batch_size}
        settings |= {"engine": engine, "examples": () if examples is None else read_pairs(examples)}
        _generate_file(file.data, file.out, spec, placement, file.columns, settings, as_json)
        return
    assert prompt is not None
    if placement.model_dump(exclude_defaults=True) or file.model_dump(exclude_defaults=True):
        expected, got = "--data with what is for files (--map, --batch-size, --executor, --workers, ...)", "a prompt"
        raise ConfigError(expected, got, "Leave those options out, or give a file.")
    if engine == "vllm":
        request = make_query(read_prompt(prompt), description, examples)
        _by_vllm(spec, request, answering, as_json)
        return
    if stream and as_json:
        raise ConfigError("--stream or --json", "both", "Give one of them.")
    query = make_query(read_prompt(prompt), description, examples)
    model = load_model(spec)
    import torch

    torch.manual_seed(answering.seed)
    sampling = {"do_sample": True, "temperature": answering.temperature} if answering.temperature > 0 else {}
    limits: Any = {"max_new_tokens": answering.max_new_tokens, "truncate": answering.truncate}
    if stream:
        if description or examples:
            described = model.condition([query]).described
            tell_unused(described[0].fault if described else None)
        for piece in model.stream(query, seed=answering.seed, **limits, **sampling):
            say_piece(piece)
        say()
        return
    (answer,) = model.generate([query], trace=as_json, **limits, **sampling)
    _print_answer(query, answer, as_json)


def _print_answer(query: "Query", answer: "Answer", as_json: bool) -> None:
    if as_json:
        say_json({"prompt": query.text, **asdict(answer)})
    else:
        tell_unused(answer.fault)
        say_piece(answer.text)
        say()


def _require_one_source(prompt: str | None, file: PromptFile, stream: bool, engine: str) -> None:
    """Raise `ConfigError` unless there is a prompt, or a file with a place for its answers, and a way to answer it."""
    from glider.errors import ConfigError

    data, out = file.data, file.out
    if (prompt is None) == (data is None) or (data is None) != (out is None) or (data and stream):
        got = ", ".join(name for name, value in (("a prompt", prompt), ("--data", data), ("--out", out)) if value)
        got += " and --stream" if stream else ""
        raise ConfigError("a prompt, or --data with --out", got or "neither", "Give one of them.")
    if engine == "vllm" and stream:
        got = "--stream beside --engine vllm"
        raise ConfigError("prompts, answered at once, for --engine vllm", got, "Leave one of them out.")


def _generate_file(
    data: Path, out: Path, spec: ModelSpec, placement: Placement, columns: str, settings: dict[str, Any], as_json: bool
) -> None:
    from glider.batch.answering import AnswerSettings
    from glider.batch.run import BatchRun, here
    from glider.cli.terminal import quiet_libraries
    from glider.data.records import columns_of
    from glider.errors import ConfigError
    from glider.progress import Bars, counter

    executor, how = placement.make(keep=True), AnswerSettings(**settings)
    if how.engine == "vllm":
        _quiet_vllm()
    run = BatchRun(data, out, spec, how, columns_of(columns))
    quiet_libraries()
    if placement.executor == "ray" and how.engine == "vllm":
        from glider.batch.ray_vllm import on_ray_by_vllm

        answer = on_ray_by_vllm(executor, spec, how)
    elif placement.executor == "ray":
        from glider.batch.ray_data import on_ray

        answer = on_ray(executor, spec, how)
    elif executor.workers > 1:
        raise ConfigError("one worker, or --executor ray", f"{executor.workers} workers here", "Say --executor ray.")
    else:
        answer = here(spec, how)
    with Bars(resumes=True) as bars:
        status = run.go(answer, counter(bars, "chunks"))
    faults = run.faults()
    if as_json:
        say_json({"out": str(out), "status": status, "faults": faults})
    else:
        say(f"{out}: {status}" + (f", {faults} rows without an answer, each with its fault" if faults else ""))
    if faults:
        raise typer.Exit(1)


def _by_vllm(spec: ModelSpec, query: "Query", answering: Answering, as_json: bool) -> None:
    """The same by vLLM, without a server."""
    _quiet_vllm()
    from glider.engines.vllm.offline import of_spec

    limits: Any = {"max_new_tokens": answering.max_new_tokens, "truncate": answering.truncate}
    drawn = {"do_sample": True, "temperature": answering.temperature, "seed": answering.seed}
    model = of_spec(spec, engine={"max_num_seqs": 1, "enforce_eager": True})
    try:
        (answer,) = model.generate([query], **limits, **(drawn if answering.temperature > 0 else {}))
    finally:
        model.close()
    _print_answer(query, answer, as_json)


def _quiet_vllm() -> None:
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # what is printed is the answer
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
