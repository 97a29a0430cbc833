"""Intervals and paired tests over rows and tasks, by SciPy where it has them.

A row's score is a number; a method's scores on a set are a list of rows for each task, and its score is the mean of the
tasks' means, so that a task counts the same however many rows it has.
"""

from collections.abc import Sequence

import numpy as np

from glider.errors import MissingDependency

try:
    from scipy import stats
except ImportError:
    raise MissingDependency("scipy", "compute intervals and tests", "pip install 'glider-moe[eval]'") from None

RESAMPLES = 2000
FLIPS = 9999  # of a test: with Holm's correction over hundred tests the smallest p is still 0.02
_DRAWN = 4 << 20  # values that are resampled at once
Tasks = Sequence[Sequence[float]]  # rows' scores by task


def mean_interval(scores: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval (percentile) of the mean."""
    values = np.asarray(scores, dtype=float)
    if len(values) < 2 or np.all(values == values[0]):
        return float(values.mean()), float(values.mean())
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=_together(len(values), RESAMPLES),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def task_mean(tasks: Tasks) -> float:
    """Mean of the tasks' means."""
    return float(np.mean([np.mean(rows) for rows in tasks]))


def two_level_interval(tasks: Tasks, seed: int = 0, *, resample_tasks: bool = True) -> tuple[float, float]:
    """95 % bootstrap interval (percentile) of the mean of task means.

    Tasks are drawn with replacement, then rows within each drawn task (SciPy's bootstrap has one level). It estimates
    the score's variation over other tasks of the kind; with `resample_tasks=False`, over other rows of these tasks.
    """
    chance = np.random.default_rng(seed)
    rows = [np.asarray(scores, dtype=float) for scores in tasks]
    count = len(rows)
    drawn = (
        chance.integers(count, size=(RESAMPLES, count)) if resample_tasks else np.tile(np.arange(count), (RESAMPLES, 1))
    )
    times = np.bincount(drawn.ravel(), minlength=count)
    places = np.split(np.argsort(drawn, axis=None, kind="stable"), np.cumsum(times)[:-1])  # of each task's draws
    means = np.empty(RESAMPLES * count)
    for values, here in zip(rows, places, strict=True):
        means[here] = _means_of_draws(values, len(here), chance)
    low, high = np.percentile(means.reshape(RESAMPLES, count).mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def paired_p(first: Sequence[float], second: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of "the mean difference is zero", by random swaps within rows (paired permutation test).

    Given task means in place of rows it tests the difference over tasks.
    """
    return _sign_flips(np.asarray(second, dtype=float) - np.asarray(first, dtype=float), seed)


def paired_tasks_p(first: Tasks, second: Tasks, seed: int = 0) -> float:
    """`paired_p` for the difference of two means of task means, by swaps within rows of the same tasks.

    Each row weighs 1 / (tasks * rows of its task), as it does in the mean.
    """
    weighted = [
        (np.asarray(b, dtype=float) - np.asarray(a, dtype=float)) / len(a) for a, b in zip(first, second, strict=True)
    ]
    return _sign_flips(np.concatenate(weighted), seed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scand. J. Statist. 6, 1979), in the order given: all tests together err in 5 %.

    SciPy has Benjamini and Hochberg's correction, which bounds another error.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _means_of_draws(values: np.ndarray, count: int, chance: np.random.Generator) -> np.ndarray:
    """Means of rows drawn with replacement, so many times; the numbers are those of one drawing of all."""
    step = _together(len(values), max(1, count))
    sizes = (min(step, count - begin) for begin in range(0, count, step))
    parts = [values[chance.integers(len(values), size=(size, len(values)))].mean(axis=1) for size in sizes]
    return np.concatenate([np.empty(0), *parts])


def _together(rows: int, most: int) -> int:
    """How many resamples of so many rows are held at once."""
    return max(1, min(most, _DRAWN // rows))


def _sign_flips(differences: np.ndarray, seed: int) -> float:
    different = differences[differences != 0]  # a swap of equals changes nothing
    if len(different) < 2:
        return 1.0
    with np.errstate(over="ignore"):  # scipy 1.15 counts all flips, which are more than a float holds
        result = stats.permutation_test(
            (different,),
            np.sum,
            permutation_type="samples",
            n_resamples=FLIPS,
            batch=_together(len(different), 1000),
            vectorized=True,
            rng=np.random.default_rng(seed),
        )
    return float(result.pvalue)
