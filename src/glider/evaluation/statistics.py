"""Intervals and paired tests over rows, by SciPy."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

RESAMPLES = 2000


def mean_interval(scores: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval (percentile) of the mean."""
    values = np.asarray(scores, dtype=float)
    if len(values) < 2 or np.all(values == values[0]):
        return float(values.mean()), float(values.mean())
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def paired_p(first: Sequence[float], second: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of "the mean difference is zero", by random swaps within rows (paired permutation test)."""
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    if len(differences) < 2 or np.all(differences == 0):
        return 1.0
    found = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
