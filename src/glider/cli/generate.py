"""`glider generate`: a prompt in, text out."""

import os
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from glider.cli.arguments import SKIPPED, DescriptionOption, JsonOption, TruncateOption, load_model, read_prompt
from glider.cli.options import with_settings
from glider.inference.spec import ModelSpec
from glider.terminal import say, say_json, say_piece


def register(app: typer.Typer, name: str, text: str) -> None:
    app.command(name, help=text)(with_settings(ModelSpec, "spec", SKIPPED)(generate))


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    spec: ModelSpec,
    description: DescriptionOption = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="For a temperature above 0.")] = 0,
    truncate: TruncateOption = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print text as it is written.")] = False,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option("--engine", help="What runs the model: transformers or vllm.")
    ] = "transformers",
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt with a routed pool."""
    from glider.errors import ConfigError

    if engine == "vllm":
        if stream:
            raise ConfigError("--stream beside --engine transformers", "--engine vllm", "Leave one of them out.")
        _by_vllm(spec, read_prompt(prompt), description, max_new_tokens, temperature, seed, truncate, as_json)
        return

    if stream and as_json:
        raise ConfigError("--stream or --json", "both", "Give one of them.")
    text = read_prompt(prompt)
    model = load_model(spec)
    import torch

    from glider.inference.queries import Query

    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    query = Query(text, description)
    if stream:
        for piece in model.stream(query, max_new_tokens=max_new_tokens, truncate=truncate, seed=seed, **sampling):
            say_piece(piece)
        say()
        return
    (answer,) = model.generate([query], max_new_tokens=max_new_tokens, truncate=truncate, trace=as_json, **sampling)
    if as_json:
        say_json({"prompt": text, **asdict(answer)})
    else:
        say_piece(answer.text)
        say()


def _by_vllm(
    spec: ModelSpec,
    text: str,
    description: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    truncate: bool,
    as_json: bool,
) -> None:
    """The same by vLLM, without a server."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # what is printed is the answer
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from glider.engines.vllm.offline import of_spec
    from glider.inference.queries import Query

    model = of_spec(spec, engine={"max_num_seqs": 1})
    try:
        sampling = {"do_sample": True, "temperature": temperature, "seed": seed} if temperature > 0 else {}
        query = Query(text, description)
        (answer,) = model.generate([query], max_new_tokens=max_new_tokens, truncate=truncate, **sampling)
    finally:
        model.close()
    if as_json:
        say_json({"prompt": text, **asdict(answer)})
    else:
        say_piece(answer.text)
        say()
