"""Which tasks no method does better than by guessing: they tell nothing of the methods."""

from collections.abc import Iterable
from typing import Literal

from glider.evaluation.statistics import holm, stats
from glider.report.cells import TaskResult

LEVEL = 0.05
Standing = Literal["above chance", "at chance", "too few rows"]


def standing(results: Iterable[TaskResult]) -> Standing:
    """Whether any of the methods is above guessing on a task, and whether its rows could show it.

    Guessing is the better of a random choice and of always giving the commonest answer. Above it is a method whose
    right answers are too many for that by a one-sided binomial test, at 5 % with Holm's correction over the methods.
    Too few are rows of which even all right would not be. Tasks with open answers count as above.
    """
    p_values, smallest = [], []  # of each method, and of one that is always right
    for result in results:
        if result.guess is None:
            return "above chance"
        count = len(result.rows)
        p_values.append(_p(min(count, round(sum(result.rows.values()))), count, result.guess))
        smallest.append(_p(count, count, result.guess))
    if not p_values or min(holm(p_values)) < LEVEL:
        return "above chance"
    return "at chance" if min(holm(smallest)) < LEVEL else "too few rows"


def _p(right: int, count: int, guess: float) -> float:
    return float(stats.binomtest(right, count, guess, alternative="greater").pvalue)
