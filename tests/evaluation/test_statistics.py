"""Intervals and tests against values that are known."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from glider.evaluation.statistics import (
    holm,
    mean_interval,
    paired_p,
    paired_tasks_p,
    task_mean,
    two_level_interval,
)


def test_a_task_counts_the_same_whatever_its_rows() -> None:
    assert task_mean([[1.0], [0.0] * 99]) == 0.5


def test_rows_alone_give_the_binomial_interval() -> None:
    low, high = two_level_interval([[0.0, 1.0] * 200] * 4, resample_tasks=False)
    half = 1.96 * math.sqrt(0.25 / 1600)
    assert low == pytest.approx(0.5 - half, abs=0.004) and high == pytest.approx(0.5 + half, abs=0.004)


def test_tasks_that_differ_widen_the_interval() -> None:
    tasks = [[share] * 50 for share in np.linspace(0, 1, 9)]
    assert two_level_interval(tasks, resample_tasks=False) == pytest.approx((0.5, 0.5))
    low, high = two_level_interval(tasks)
    half = 1.96 * np.std(np.linspace(0, 1, 9)) / 3
    assert low == pytest.approx(0.5 - half, abs=0.03) and high == pytest.approx(0.5 + half, abs=0.03)


def test_the_two_level_variance_is_the_sum_of_both() -> None:
    chance = np.random.default_rng(1)
    tasks = [list(chance.binomial(1, share, 30).astype(float)) for share in chance.uniform(0.2, 0.8, 20)]
    means = np.array([np.mean(rows) for rows in tasks])
    within = np.mean([m * (1 - m) / 30 for m in means])
    half = 1.96 * math.sqrt((means.var() + within) / 20)
    low, high = two_level_interval(tasks)
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)


def test_few_pairs_are_tested_exactly() -> None:
    assert paired_p([0.0] * 5, [1.0] * 5) == pytest.approx(2 / 32)
    assert paired_p([0.0] * 5 + [1.0] * 50, [1.0] * 5 + [1.0] * 50) == pytest.approx(2 / 32)  # equals change nothing


def test_a_paired_difference_agrees_with_mcnemar() -> None:
    first, second = [1.0] * 8 + [0.0] * 24 + [1.0] * 68, [0.0] * 8 + [1.0] * 24 + [1.0] * 68
    assert paired_p(first, second) == pytest.approx(stats.binomtest(8, 32).pvalue, abs=0.005)


def test_rows_of_several_tasks_are_swapped_within_tasks() -> None:
    one, other = [[0.0] * 10, [1.0, 0.0] * 20], [[1.0] * 10, [0.0, 1.0] * 20]
    assert paired_tasks_p(one, other) < 0.01
    assert paired_tasks_p(one, one) == 1.0
    assert paired_tasks_p([[0.0, 1.0] * 20], [[1.0, 0.0] * 20]) > 0.5


def test_holm_adjusts_as_in_the_literature() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_resamples_of_many_rows_are_held_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200,000 rows, eight megabytes of a result, all at once were six gigabytes. The numbers stay what they are."""
    scores = [(i * i % 7) / 6 for i in range(3000)]
    tasks = [scores, scores[:700], [0.0, 1.0]]
    numbers = [two_level_interval(tasks), mean_interval(scores), paired_p(scores, scores[::-1])]
    monkeypatch.setattr("glider.evaluation.statistics._DRAWN", 7001, raising=False)
    assert [two_level_interval(tasks), mean_interval(scores), paired_p(scores, scores[::-1])] == numbers
    monkeypatch.undo()
    monkeypatch.setattr("glider.evaluation.statistics.RESAMPLES", 600)
    tracemalloc.start()
    two_level_interval([[i % 2 for i in range(50_000)]])
    mean_interval([i % 2 for i in range(50_000)])
    assert tracemalloc.get_traced_memory()[1] < 120 << 20
    tracemalloc.stop()
