"""A task is at chance when no method is surely above guessing."""

import pytest

from glider.report.cells import TaskResult
from glider.report.chance import at_chance


def told(right: int, rows: int, guess: float | None = 0.5) -> TaskResult:
    return TaskResult({i: float(i < right) for i in range(rows)}, (right / rows,), guess, frozenset())


@pytest.mark.parametrize(
    ("several", "chance"),
    [
        ([told(20, 20)], False),
        ([told(10, 20)], True),
        ([told(0, 20), told(10, 20)], True),
        ([told(15, 20)], False),  # p = 0.021
        ([told(15, 20), told(10, 20), told(9, 20)], True),  # one of three tries: 0.062
        ([told(6, 20, 0.25)], True),
        ([told(12, 20, 0.25)], False),
        ([told(1, 20, None)], False),
        ([], False),
    ],
)
def test_at_chance(several: list[TaskResult], chance: bool) -> None:
    assert at_chance(several) is chance
