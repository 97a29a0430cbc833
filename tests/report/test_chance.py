"""A task is at chance when no method is surely above guessing."""

import pytest

from glider.report.cells import TaskResult
from glider.report.chance import Standing, standing


def told(right: int, rows: int, guess: float | None = 0.5) -> TaskResult:
    return TaskResult({i: float(i < right) for i in range(rows)}, (right / rows,), guess, frozenset())


@pytest.mark.parametrize(
    ("several", "chance"),
    [
        ([told(20, 20)], "above chance"),
        ([told(10, 20)], "at chance"),
        ([told(0, 20), told(10, 20)], "at chance"),
        ([told(15, 20)], "above chance"),  # p = 0.021
        ([told(15, 20), told(10, 20), told(9, 20)], "at chance"),  # one of three tries: 0.062
        ([told(6, 20, 0.25)], "at chance"),
        ([told(12, 20, 0.25)], "above chance"),
        ([told(5, 5)], "above chance"),  # p = 0.031
        ([told(5, 5), told(5, 5)], "too few rows"),
        ([told(4, 4)], "too few rows"),
        ([told(0, 6), told(40, 60)], "above chance"),  # one method has more rows than the other: p = 0.013
        ([told(1, 20, None)], "above chance"),
        ([], "above chance"),
    ],
)
def test_standing(several: list[TaskResult], chance: Standing) -> None:
    assert standing(several) == chance
