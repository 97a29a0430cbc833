"""Arguments that several commands share."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glider.experts.trust import Trust
    from glider.inference.model import RoutedModel
    from glider.inference.queries import Query
    from glider.inference.spec import ModelSpec
    from glider.instructions.describers import Describer

SKIPPED = ("settings", "prompt", "expert_dtype")  # fields of the spec that no command asks for
ReadPool = Annotated[str, typer.Argument(help="Directory of the pool, or demo for the embedded one.")]
PoolOption = Annotated[str, typer.Option("--pool", help="Directory of the pool, or demo for the embedded one.")]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key",
        help="File of public keys (PEM), one of which must have signed the pool. Default: $GLIDER_TRUSTED_KEYS.",
    ),
]
TruncateOption = Annotated[bool, typer.Option("--truncate", help="Keep the end of a prompt that is too long.")]
PoolPath = Annotated[Path, typer.Argument(help="Directory of the pool.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DescriptionOption = Annotated[
    str | None, typer.Option("--description", help="One sentence naming the task, for the global term.")
]
ExamplesOption = Annotated[
    Path | None,
    typer.Option("--examples", help="Rows of input and output of the same task, for the global term."),
]
DescriberOption = Annotated[
    str | None,
    typer.Option("--describer", help="Who describes a prompt that comes without: openai:MODEL, local:MODEL."),
]
BaseUrlOption = Annotated[
    str | None, typer.Option("--base-url", help="Address of the describer's endpoint, up to /v1.")
]
GlobalOption = Annotated[
    str | None,
    typer.Option("--global", help="Global signal: instruction, examples, ensemble. Default: the pool's."),
]


def pool_to_read(path: str, key: Path | None) -> "tuple[Path, Trust]":
    """The directory of a pool that a command reads and does not change, and whose signature it must have."""
    from glider.demo.pool import DEMO_POOL
    from glider.experts.trust import UNSIGNED

    return (DEMO_POOL, UNSIGNED) if path == "demo" else (Path(path), key)


def load_model(spec: "ModelSpec") -> "RoutedModel":
    """The model of a spec, with libraries kept quiet."""
    from glider.cli.terminal import quiet_libraries

    quiet_libraries()
    return spec.load()


def make_describer(name: str | None, base_url: str | None) -> "Describer | None":
    """The describer that the shared options name."""
    from glider.inference.spec import ModelSpec

    return ModelSpec(describer=name, base_url=base_url).writer


def read_prompt(prompt: str) -> str:
    """The prompt itself, or standard input for `-`."""
    return sys.stdin.read().strip() if prompt == "-" else prompt


def make_query(text: str, description: str | None, examples: Path | None) -> "Query":
    """A query with what the options say of its task."""
    from glider.data.rows import read_pairs
    from glider.inference.queries import Query

    return Query(text, description, () if examples is None else read_pairs(examples))


def tell_unused(fault: str | None) -> None:
    """Say on stderr what of a query nobody reads; other faults are warned of where they happen."""
    from glider.inference.queries import NOT_USED
    from glider.terminal import say

    if fault is not None and NOT_USED in fault:
        say(f"glider: {fault}", error=True)
