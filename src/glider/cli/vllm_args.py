"""`glider vllm-args`: what `vllm serve` must be told to serve a pool."""

from typing import Annotated, Literal

import typer

from glider.cli.options import with_settings
from glider.inference.spec import ModelSpec
from glider.terminal import say

_SKIPPED = ("settings", "prompt", "expert_dtype", "expert_memory", "dtype", "device", "arguments", "pool")


def register(app: typer.Typer, name: str, text: str) -> None:
    app.command(name, help=text)(with_settings(ModelSpec, "spec", _SKIPPED)(vllm_args))


def vllm_args(
    pool: Annotated[str, typer.Argument(help="Directory of the pool, or demo for the embedded one.")],
    spec: ModelSpec,
    mode: Annotated[
        Literal["route", "select"],
        typer.Option("--mode", help="route: experts by token. select: one expert or the base answers a request."),
    ] = "route",
    unsure: Annotated[
        Literal["nearest", "base"],
        typer.Option("--unsure", help="Of --mode select: who answers what the pool is unsure of."),
    ] = "nearest",
    name: Annotated[
        str | None, typer.Option("--name", help="Served name of the pool. Default: its directory's.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", help="Of --mode route: a further router with the same token scores, as POOL:ROUTER."),
    ] = None,
) -> None:
    """Print the arguments: vllm serve BASE $(glider vllm-args POOL). With --base the base comes first among them."""
    from glider.cli.terminal import quiet_libraries
    from glider.engines.vllm.arguments import command_line, is_word, plugin_settings
    from glider.errors import ConfigError
    from glider.inference.base_model import located

    if also and mode == "select":
        raise ConfigError("--also beside --mode route", "--mode select", "Leave one of them out.")
    quiet_libraries()
    settings = plugin_settings(spec.model_copy(update={"pool": pool, "base": None}), mode, unsure, name)
    words = command_line(settings, tuple(also or ()))
    base = [] if spec.base is None else [located(spec.base)]
    if base and not is_word(base[0]):
        remedy = "Write it by yourself: vllm serve BASE $(glider vllm-args POOL)."
        raise ConfigError("a --base that is one word for a shell", repr(base[0])[:200], remedy)
    say(" ".join([*base, *words]))
