"""Arguments that several commands share, and how they become a model."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel
    from glider.instructions.describers import Describer

PoolOption = Annotated[str, typer.Option("--pool", help="Directory of the pool, or demo for the embedded one.")]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Hub id or path of the base model. Default: the one the pool names.")
]
RouterOption = Annotated[
    str, typer.Option("--router", help="Method, one of `glider routers`; with settings: merge(method=ties).")
]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="Experts kept for each token (default 2).")]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", help="Keep the experts that reach this probability instead.")
]
TruncateOption = Annotated[bool, typer.Option("--truncate", help="Keep the end of a prompt that is too long.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DescriptionOption = Annotated[
    str | None, typer.Option("--description", help="One sentence naming the task, for the global term.")
]
DescriberOption = Annotated[
    str | None,
    typer.Option("--describer", help="Who describes a prompt that comes without: openai:MODEL, local:MODEL."),
]
BaseUrlOption = Annotated[
    str | None, typer.Option("--base-url", help="Address of the describer's endpoint, up to /v1.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Stop if a description fails, instead of routing by the local term.")
]
GlobalOption = Annotated[
    str | None,
    typer.Option(
        "--global",
        help="Global signal: instruction, examples, ensemble. Default: the pool's; instruction for a description.",
    ),
]
ExpertMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--expert-memory",
        help="Memory for experts, as 2GB: those used last stay in it, others are read when a token asks for them.",
    ),
]


def load_model(
    pool: str,
    base: str | None,
    router: str,
    top_k: int | None,
    top_p: float | None,
    describer: "Describer | None" = None,
    strict: bool = False,
    signal: str | None = None,
    expert_memory: str | None = None,
    *,
    described: bool = False,
) -> "RoutedModel":
    """The model that the shared options describe; a signal for a router that has none is an error of the router's.

    Queries that are `described` ask for the signal `instruction`, where neither `signal` nor the router names one.
    """
    from glider.cli.terminal import quiet_libraries
    from glider.errors import ConfigError

    if top_k is not None and top_p is not None:
        raise ConfigError("--top-k or --top-p", "both", "Give one of them.")
    quiet_libraries()
    from glider.inference.loading import load
    from glider.routing.base import routers
    from glider.routing.specification import parsed, router_from

    router, written = parsed(router)
    if (top_k is not None or top_p is not None) and not {"k", "select"} & routers.settings(router):
        raise ConfigError("a router that selects experts, for --top-k or --top-p", router, "Leave the option out.")
    if signal is None and described and router.startswith("glider") and not {"global", "global_"} & written.keys():
        signal = "instruction"
    settings = {"top_k": top_k, "top_p": top_p, "global_": signal}
    given = {name: value for name, value in settings.items() if value is not None}
    return load(
        *(base, pool),
        router=router_from(router, {**written, **given}),
        describer=describer,
        strict=strict,
        expert_memory=expert_memory,
    )


def make_describer(name: str | None, base_url: str | None) -> "Describer | None":
    """The describer that the shared options name."""
    from glider.errors import ConfigError

    if name is None:
        if base_url is not None:
            raise ConfigError("--describer openai:MODEL for --base-url", "no --describer", "Give both or none.")
        return None
    from glider.instructions.describers import load_describer

    return load_describer(name, **({} if base_url is None else {"base_url": base_url}))


def read_prompt(prompt: str) -> str:
    """The prompt itself, or standard input for `-`."""
    return sys.stdin.read().strip() if prompt == "-" else prompt
