"""`glider generate`: a prompt in, text out."""

from dataclasses import asdict
from typing import Annotated

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
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt with a routed pool."""
    from glider.errors import ConfigError

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
