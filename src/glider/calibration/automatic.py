"""The calibration that a pool gets by itself when it is made or takes up an expert."""

import warnings

from glider.calibration.threshold import calibrate, recalibrated
from glider.calibration.verdict import LEAST_QUERIES, choose_thresholds, renewed_thresholds
from glider.errors import GliderWarning, PoolError, RouterError
from glider.experts.pool import Pool

SIGNAL = "examples"  # what a pool is calibrated for where nobody says otherwise


def renewed(pool: Pool) -> Pool:
    """The pool with the calibrations and thresholds that it has made anew, if its experts changed."""
    return renewed_thresholds(recalibrated(pool))


def calibrated(pool: Pool) -> Pool:
    """The pool as `renewed` gives it, and with what it lacks, as `glider pool calibrate` chooses it: p of the signal
    `examples` and the thresholds of verdicts.

    What the experts' profiles do not suffice for stays out: both, where they keep fewer than eight queries together;
    p, where the pool has one expert or no calibration can be made of what all of them keep. The latter is a warning.
    """
    pool = renewed(pool)
    if not has_queries(pool):
        return pool
    if not pool.index.calibrations and len(pool) > 1:
        try:
            pool = pool.calibrate(SIGNAL, calibrate(pool, SIGNAL))
        except (PoolError, RouterError) as fault:
            warnings.warn(f"no threshold p for the pool {pool.path}: {fault}", GliderWarning, stacklevel=2)
    return pool if pool.index.verdicts is not None else pool.set_verdicts(choose_thresholds(pool))


def has_queries(pool: Pool) -> bool:
    """Whether the experts' profiles keep enough queries to choose the thresholds of verdicts by."""
    count = 0
    for expert in pool:
        if expert.profile is not None and expert.profile.has_words:
            count += len([query for query in expert.profile.queries if len(query)])
        if count >= LEAST_QUERIES:
            return True
    return False
