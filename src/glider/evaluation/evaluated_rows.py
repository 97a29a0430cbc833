"""The rows that are scored, and what their scores mean."""

from collections.abc import Sequence
from dataclasses import dataclass

from glider.data.rows import Row
from glider.errors import DataError
from glider.evaluation.metrics import Metric, guessing, require


@dataclass(frozen=True)
class EvaluatedRows:
    """The rows of a task that are evaluated, with their places among the split's `available` rows."""

    rows: list[Row]
    places: list[int]
    available: int
    left_out: int
    guess: float | None  # what guessing gives on all of the split; None for open answers
    metric: Metric

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "EvaluatedRows":
        """All of these rows: by `accuracy` where they have choices, else by `rougeL`.

        Raises `DataError` for rows whose score would mean nothing, `MissingDependency` without their metric's package.
        """
        require_scorable(rows)
        by_choice = bool(rows[0].choices)
        guess = guessing(rows) if by_choice else None
        return cls(list(rows), list(range(len(rows))), len(rows), 0, guess, "accuracy" if by_choice else "rougeL")


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
