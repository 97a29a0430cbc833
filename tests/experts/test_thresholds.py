"""Thresholds that a pool's file may not have."""

import pytest
from pydantic import ValidationError

from glider.experts.thresholds import Thresholds

RIGHT = {"stranger": -0.5, "fits": 1.5, "false_abstention": 0.1, "false_acceptance": 0.05}


@pytest.mark.parametrize("value", [3e38, -3e38, 1e39, float("nan"), float("inf")])
@pytest.mark.parametrize("name", RIGHT)
def test_no_threshold_makes_every_query_a_stranger(name: str, value: float) -> None:
    Thresholds.model_validate(RIGHT)
    with pytest.raises(ValidationError, match=name):
        Thresholds.model_validate({**RIGHT, name: value})
