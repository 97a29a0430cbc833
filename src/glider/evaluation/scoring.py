"""The score of one model on rows of one task, row by row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glider.data.rows import Row
from glider.errors import DataError
from glider.evaluation.metrics import require, score_text
from glider.inference.model import RoutedModel

Tick = Callable[[int], None]  # rows done
_BATCH = 16


@dataclass(frozen=True)
class RowScores:
    """A score for each row, in [0, 1]; `exact` (exact match) for rows without choices only."""

    metric: str  # "accuracy" or "rougeL"
    scores: list[float]
    exact: list[float] | None
    tokens: int  # tokens of prompts and answers that were computed


def score_rows(
    model: RoutedModel, rows: Sequence[Row], max_new_tokens: int = 48, tick: Tick = lambda _: None
) -> RowScores:
    """Rows with choices: rank classification by length-normalised log-likelihood, end token included.

    Rows without: ROUGE-L, best of the references, and exact match of the greedy answer. Raises `DataError` for rows of
    both kinds, or an output that is none of its choices.
    """
    require_scorable(rows)
    if all(row.choices for row in rows):
        return _rank(model, rows, tick)
    return _generate(model, rows, max_new_tokens, tick)


def require_scorable(rows: Sequence[Row]) -> None:
    """Raise `DataError` for rows whose score would mean nothing, `MissingDependency` without their metric's package."""
    if not rows:
        raise DataError("rows to score", "none", "Give rows with `input` and `output`.")
    if any(row.choices for row in rows) and not all(row.choices for row in rows):
        raise DataError("rows all with choices, or all without", "both kinds", "Compare them apart.")
    for number, row in enumerate(rows, start=1):
        if row.choices and row.output not in row.choices:
            raise DataError(f"the output of row {number} among its choices", repr(row.output), "Mend the row.")
    if not rows[0].choices:
        require("rougeL")


def _rank(model: RoutedModel, rows: Sequence[Row], tick: Tick) -> RowScores:
    scores, tokens = [], 0
    for done, row in enumerate(rows, start=1):
        assert row.choices is not None
        ranked = model.score(row.input, row.choices)
        best = max(ranked, key=lambda choice: choice.normalised)
        scores.append(float(best.choice in row.accepted))
        tokens += len(model.prompt.prompt_ids(model.tokenizer, row.input)) + sum(choice.tokens for choice in ranked)
        tick(done)
    return RowScores("accuracy", scores, None, tokens)


def _generate(model: RoutedModel, rows: Sequence[Row], max_new_tokens: int, tick: Tick) -> RowScores:
    scores, exact, tokens = [], [], 0
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        answers = model.generate([row.input for row in batch], max_new_tokens=max_new_tokens)
        for row, answer in zip(batch, answers, strict=True):
            scores.append(score_text("rougeL", answer.text, row.accepted))
            exact.append(score_text("exact_match", answer.text, row.accepted))
            tokens += len(model.prompt.prompt_ids(model.tokenizer, row.input)) + len(answer.token_ids)
        tick(start + len(batch))
    return RowScores("rougeL", scores, exact, tokens)
