"""Arguments that several commands share, and how they become a model."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glider.model import RoutedModel

PoolOption = Annotated[str, typer.Option("--pool", help="Directory of the pool, or demo for the embedded one.")]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Hub id or path of the base model. Default: the one the pool names.")
]
RouterOption = Annotated[
    str, typer.Option("--router", help="Method: glider, phatgoose, base, single:NAME, or an installed one.")
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


def load_model(pool: str, base: str | None, router: str, top_k: int | None, top_p: float | None) -> "RoutedModel":
    """The model that the shared options describe."""
    from glider.cli.terminal import quiet_libraries
    from glider.errors import ConfigError

    if top_k is not None and top_p is not None:
        raise ConfigError("--top-k or --top-p", "both", "Give one of them.")
    quiet_libraries()
    from glider.model import load
    from glider.routing.base import routers
    from glider.routing.specification import router_from

    if (top_k is not None or top_p is not None) and not {"k", "select"} & routers.settings(router):
        raise ConfigError("a router that selects experts, for --top-k or --top-p", router, "Leave the option out.")
    settings = {"top_k": top_k, "top_p": top_p}
    given = {name: value for name, value in settings.items() if value is not None}
    return load(base, pool, router=router_from(router, given))


def read_prompt(prompt: str) -> str:
    """The prompt itself, or standard input for `-`."""
    return sys.stdin.read().strip() if prompt == "-" else prompt
