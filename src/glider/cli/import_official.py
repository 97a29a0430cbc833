"""`glider expert import-official`: the published checkpoints of GLIDER and PHATGOOSE in, a pool out."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glider.files.json_text import read_json
from glider.files.opening import read_text
from glider.files.yaml_text import LARGEST_YAML
from glider.terminal import say

if TYPE_CHECKING:
    from glider.contribute.published_import import OfficialBase


class GateKind(str, Enum):
    """What the gates of a checkpoint are."""

    auto = "auto"
    trained = "trained"
    arrow = "arrow"


class StoredDtype(str, Enum):
    """How LoRA pairs and gates are stored."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ORDER = (
    "The experts' names, comma-separated or one a line in a file. "
    "Default: the files' names; for PHATGOOSE's file its 36 T0 tasks."
)


def import_official(
    checkpoint: Annotated[
        Path, typer.Argument(help="A directory of <task>_best.pt, one such file, or PHATGOOSE's file of all experts.")
    ],
    base: Annotated[str, typer.Option("--base", help="Hub id or path of the base model it was made for.")],
    pool: Annotated[Path, typer.Option("--pool", help="The pool's new directory.")],
    embeddings: Annotated[
        Path | None, typer.Option("--embeddings", help="The experts' instruction embeddings (a .pt of task: vector).")
    ] = None,
    descriptions: Annotated[
        Path | None, typer.Option("--descriptions", help="A JSON object of task: sentence, for the cards.")
    ] = None,
    order: Annotated[str | None, typer.Option("--order", help=ORDER)] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="An expert to leave out; may be given several times.")
    ] = None,
    gates: Annotated[
        GateKind, typer.Option("--gates", help="What the gates are; auto tells Arrow's by their unit length.")
    ] = GateKind.auto,
    dtype: Annotated[
        StoredDtype, typer.Option("--dtype", help="Storage of LoRA pairs and gates.")
    ] = StoredDtype.float32,
    licence: Annotated[str | None, typer.Option("--licence", help="Licence of the experts (SPDX).")] = None,
) -> None:
    """Import a published checkpoint as a new pool.

    All of its experts are imported, or nothing.
    """
    import torch

    from glider.cli.terminal import quiet_libraries
    from glider.contribute.published_format import open_checkpoint, read_embeddings
    from glider.contribute.published_import import import_checkpoint
    from glider.errors import PoolError

    quiet_libraries()
    if os.path.lexists(pool):
        raise PoolError(f"a new directory at {pool}", "an existing one", "Remove it or give another --pool.")
    opened = open_checkpoint(checkpoint, None if order is None else _names(order))
    vectors = None if embeddings is None else read_embeddings(embeddings)
    with _progress() as report:
        experts = import_checkpoint(
            opened,
            pool,
            _facts(base),
            embeddings=vectors,
            descriptions=None if descriptions is None else _sentences(descriptions),
            without=without or (),
            gates=gates.value,
            dtype=getattr(torch, dtype.value),
            licence=licence,
            report=report,
        )
    kinds = "/".join(sorted({expert.card.training["gates"] for expert in experts}))
    embedded = "with" if vectors else "without"
    say(f"{pool}: {len(experts)} experts, {len(experts.sites)} sites, {kinds} gates, {embedded} instructions")


def _names(order: str) -> list[str]:
    """Names from a comma-separated list, or from a file with one a line."""
    from glider.errors import DataError

    file = Path(order)
    parts = order.split(",")
    if "," not in order and file.is_file():
        try:
            parts = read_text(file, LARGEST_YAML).split()
        except ValueError as fault:
            raise DataError(
                f"names of experts in {file}", str(fault), "Give a text file with one name a line."
            ) from fault
    return [name.strip() for name in parts if name.strip()]


def _sentences(path: Path) -> dict[str, str]:
    from glider.errors import DataError

    try:
        read = read_json(path)
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"descriptions at {path}", "no such file", "Check the path.") from None
    except (ValueError, RecursionError) as fault:
        raise DataError(f"JSON in {path}", str(fault), "Mend the file.") from fault
    if not isinstance(read, dict) or not all(isinstance(sentence, str) for sentence in read.values()):
        raise DataError(f"an object of task: sentence in {path}", "another content", "Mend the file.")
    return read


def _facts(base: str) -> "OfficialBase":
    """What the import needs of the base model, which is let go."""
    from glider.contribute.published_import import OfficialBase
    from glider.inference.base_model import load_base

    loaded = load_base(base)
    return OfficialBase.of(loaded.model, loaded.identity.model_id)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr, one step for each expert; nothing where it is no terminal."""
    from glider.progress import Bars

    with Bars() as bars:
        yield lambda name, done, total: bars.update("Importing", done / total, name)
