"""Answers to a chunk of prompts, the same on every machine and at any time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from glider.batch.prompts import PromptRow
from glider.config import Config
from glider.errors import QueryError
from glider.inference.answers import Answer
from glider.inference.queries import Query
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
    engine: Literal["transformers", "vllm"] = "transformers"

    @property
    def content(self) -> dict[str, Any]:
        """What decides the answers."""
        return self.model_dump(mode="json", exclude={"engine"} if self.engine == "transformers" else set())


@dataclass(frozen=True)
class Answering:
    """A model and settings: rows in, answers out."""

    model: Any  # a `RoutedModel`, or a `VllmModel`
    settings: AnswerSettings

    def chunk(self, rows: Sequence[PromptRow]) -> list[dict[str, Any]]:
        """An answer for each row. A row that cannot be answered has a `fault` and does not affect the others."""
        try:
            return [entry(row, answer) for row, answer in zip(rows, self._answers(rows), strict=True)]
        except QueryError:
            return [self._alone(row) for row in rows]

    def _alone(self, row: PromptRow) -> dict[str, Any]:
        try:
            (answer,) = self._answers([row])
        except QueryError as fault:
            return {**entry(row, None), "fault": str(fault)}
        return entry(row, answer)

    def _answers(self, rows: Sequence[PromptRow]) -> list[Answer]:
        queries, limit, truncate, drawn = answers_of(rows, self.settings)
        return self.model.generate_batch(queries, max_new_tokens=limit, truncate=truncate, **drawn)


def answers_of(rows: Sequence[PromptRow], settings: AnswerSettings) -> tuple[list[Query], int, bool, dict[str, Any]]:
    """Queries, the longest answer, whether to truncate, and how answers are drawn.

    The rows are consecutive in their file; sampling of each row depends on its place there.
    """
    queries = [row.query(settings.description, settings.examples) for row in rows]
    drawn = {"do_sample": True, "temperature": settings.temperature, "seed": settings.seed + rows[0].row}
    return queries, settings.max_new_tokens, settings.truncate, drawn if settings.temperature > 0 else {}


def entry(row: PromptRow, answer: Answer | None) -> dict[str, Any]:
    """The line of a row in the file of answers; without an answer, all but its place is missing."""
    place: dict[str, Any] = {"row": row.row, "id": None if row.id is None else str(row.id)}
    scores = {} if answer is None else answer.global_scores
    return place | {
        "text": None if answer is None else answer.text,
        "finish_reason": None if answer is None else answer.finish_reason,
        "verdict": None if answer is None else answer.verdict,
        "expert": max(scores, key=lambda name: scores[name]) if scores else None,
        "alpha": None if answer is None else answer.alpha,
        "description": None if answer is None else answer.description,
        "fault": None if answer is None else answer.fault,
    }
