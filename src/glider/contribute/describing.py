"""An expert's description, written by a describer from rows of its task (GLIDER, section 4.1)."""

import random
from pathlib import Path

from glider.contribute.adopt import add_description
from glider.data.rows import read_rows
from glider.errors import DescriberError, ExpertError
from glider.experts.card import DescriptionOrigin
from glider.experts.expert import Expert
from glider.instructions.cache import Cache
from glider.instructions.describers import Describer, Task, describe_tasks
from glider.instructions.prompts import Pair, Prompt
from glider.routing.condition import Described


def describe_expert(
    directory: Path | str,
    describer: Describer,
    embedder: str,
    prefix: str = "",
    *,
    data: Path | str | None = None,
    rows: int = 3,
    seed: int = 0,
    prompt: Prompt | None = None,
    cache: Cache | None = None,
) -> tuple[Expert, Described]:
    """Let a describer read examples of an expert's task, and store the description with the expert.

    The examples are `rows` rows of `data` (of its training split where it names one), drawn by `seed`, or without
    `data` those of the card; `prompt` is by default the one that suits their number. Raises `ExpertError` without
    examples and `DescriberError` without a description; the expert is then unchanged.
    """
    examples = _examples(Path(directory), data, rows, seed)
    (written,) = describe_tasks(describer, [Task(examples)], cache=cache, prompt=prompt)
    if written.text is None:
        got = written.fault or "none"
        raise DescriberError(f"a description by {describer.name}", got, "Try again, or give the sentence yourself.")
    origin = DescriptionOrigin(describer=written.source, prompt=written.prompt)
    return add_description(directory, written.text, embedder, prefix, origin), written


def _examples(directory: Path, data: Path | str | None, rows: int, seed: int) -> tuple[Pair, ...]:
    if data is not None:
        read = [row for row in read_rows(data) if row.split in (None, "train")]
        sample = random.Random(seed).sample(read, min(rows, len(read)))
        pairs = tuple((row.input, row.output) for row in sample)
    else:
        pairs = tuple((example.input, example.output) for example in Expert.open(directory).card.examples[:rows])
    if not pairs:
        place = data if data is not None else f"the card of {directory}"
        raise ExpertError("examples of the expert's task", f"none in {place}", "Give rows of the task by --data.")
    return pairs
