"""Rows that routers are trained on: of every expert's task, encoded once, with what is held back to validate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glider.contribute.examples import EncodedRow, encode_rows
from glider.contribute.settings import RouterTraining
from glider.data.rows import Row
from glider.errors import DataError
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel


@dataclass(frozen=True)
class TaskRows:
    """The rows of one expert's task, as text and as tokens."""

    rows: Sequence[Row]
    train: Sequence[EncodedRow]
    validation: Sequence[EncodedRow]


def encoded_tasks(
    base: BaseModel, pool: Pool, rows: Mapping[str, Sequence[Row]], settings: RouterTraining
) -> dict[str, TaskRows]:
    """Rows of every expert, in the pool's order; raises `DataError` naming the experts without any that fit."""
    tasks = {}
    for expert in pool:
        selected = list(rows.get(expert.name, ()))[: settings.rows]
        encoded, _ = encode_rows(selected, base.tokenizer, expert.card.prompt, settings.max_tokens, base.model)
        held_back = len(encoded) // 8
        tasks[expert.name] = TaskRows(selected, encoded[held_back:], encoded[:held_back])
    if lacking := [name for name, task in tasks.items() if not task.train]:
        expected = f"rows of at most {settings.max_tokens} tokens for every expert"
        raise DataError(expected, f"none for {', '.join(lacking)}", "Give their training rows.")
    return tasks
