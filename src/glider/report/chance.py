"""Which tasks no method does better than by guessing: they tell nothing of the methods."""

from collections.abc import Iterable

from scipy import stats

from glider.evaluation.statistics import holm
from glider.report.cells import TaskResult

LEVEL = 0.05


def at_chance(results: Iterable[TaskResult]) -> bool:
    """Whether none of the methods is above guessing on a task.

    Guessing is the better of a random choice and of always giving the commonest answer. Above it is a method whose
    right answers are too many for that by a one-sided binomial test, at 5 % with Holm's correction over the methods.
    Tasks with open answers are never at chance.
    """
    p_values = []
    for result in results:
        if result.guess is None:
            return False
        count = len(result.rows)
        right = min(count, round(sum(result.rows.values())))
        p_values.append(float(stats.binomtest(right, count, result.guess, alternative="greater").pvalue))
    return bool(p_values) and min(holm(p_values)) >= LEVEL
