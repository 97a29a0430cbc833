"""Pools whose experts have profiles, calibrated for verdicts."""

from collections.abc import Callable

import pytest

from glider.calibration.threshold import calibrate
from glider.calibration.verdict import choose_thresholds
from glider.experts.pool import Pool


def own_query(expert: int) -> str:
    """A query of the task of the expert e0, e1, ..."""
    return f"the e{expert} " + " ".join(f"e{expert}{number} and" for number in (3, 17, 21, 30, 8, 12))


STRANGER = "Can you write a short poem about the sea?"
BETWEEN = "the e0 and the e1 and the e2 and"


@pytest.fixture
def calibrated(make_pool) -> Callable[..., Pool]:
    """`calibrated(base_directory, experts=3)`: such a pool, with the signal `examples`."""

    def make(base_directory, experts: int = 3, **settings) -> Pool:
        pool = make_pool(base_directory, experts, profile=True, **settings)
        if experts > 1:
            stored = calibrate(pool, "examples").model_copy(update={"p": 0.5})  # these experts share no word
            pool = pool.calibrate("examples", stored)
        return pool.set_verdicts(choose_thresholds(pool))

    return make
