"""Answers to a chunk of prompts, the same on every machine and at any time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glider.batch.prompts import PromptRow
from glider.config import Config
from glider.errors import QueryError
from glider.inference.answers import Answer
from glider.inference.model import RoutedModel
from glider.instructions.prompts import Pair


class AnswerSettings(Config):
    """How prompts are answered."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    truncate: bool = False
    description: str | None = None  # of rows without one of their own
    batch_size: int = 64
    examples: tuple[Pair, ...] = ()  # of the task, given with every row


@dataclass(frozen=True)
class Answering:
    """A model and settings: rows in, answers out."""

    model: RoutedModel
    settings: AnswerSettings

    def chunk(self, rows: Sequence[PromptRow]) -> list[dict[str, Any]]:
        """An answer for each row. A row that cannot be answered has a `fault` and does not affect the others."""
        try:
            return [_entry(row, answer) for row, answer in zip(rows, self._answers(rows), strict=True)]
        except QueryError:
            return [self._alone(row) for row in rows]

    def _alone(self, row: PromptRow) -> dict[str, Any]:
        try:
            (answer,) = self._answers([row])
        except QueryError as fault:
            return {**_entry(row, None), "fault": str(fault)}
        return _entry(row, answer)

    def _answers(self, rows: Sequence[PromptRow]) -> list[Answer]:
        """The rows are consecutive in their file; sampling of each row depends on its place there."""
        settings = self.settings
        drawn = {"do_sample": True, "temperature": settings.temperature, "seed": settings.seed + rows[0].row}
        return self.model.generate_batch(
            [row.query(settings.description, settings.examples) for row in rows],
            max_new_tokens=settings.max_new_tokens,
            truncate=settings.truncate,
            **(drawn if settings.temperature > 0 else {}),
        )


def _entry(row: PromptRow, answer: Answer | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"row": row.row, "id": None if row.id is None else str(row.id)}
    scores = {} if answer is None else answer.global_scores
    return entry | {
        "text": None if answer is None else answer.text,
        "finish_reason": None if answer is None else answer.finish_reason,
        "verdict": None if answer is None else answer.verdict,
        "expert": max(scores, key=lambda name: scores[name]) if scores else None,
        "alpha": None if answer is None else answer.alpha,
        "description": None if answer is None else answer.description,
        "fault": None if answer is None else answer.fault,
    }
