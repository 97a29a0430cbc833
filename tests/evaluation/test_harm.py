"""What a router does to its base model, in numbers."""

import pytest

from glider.evaluation.harm import Harm, shares_text, verdict_shares


def test_harm_is_paired_by_row_and_counts_tasks_alike() -> None:
    harm = Harm.of([[1, 1, 0, 0], [0.5, 0.5]], [[0, 1, 1, 0], [0.5, 1.0]])
    assert harm.difference == pytest.approx((0 + 0.25) / 2)
    assert harm.worse == pytest.approx((0.25 + 0) / 2)
    assert harm.low <= harm.difference <= harm.high
    assert harm.text.startswith("+12.5 (") and harm.text.endswith("12% worse")


def test_the_same_answers_do_no_harm() -> None:
    harm = Harm.of([[1, 0, 1]], [[1, 0, 1]])
    assert (harm.difference, harm.low, harm.high, harm.worse) == (0, 0, 0, 0)


def test_shares_of_verdicts() -> None:
    assert verdict_shares(["fits", "fits", "stranger", "unsure"]) == {"fits": 0.5, "unsure": 0.25, "stranger": 0.25}
    assert verdict_shares([None, None]) == {} and verdict_shares([]) == {}
    assert shares_text({"fits": 0.5, "stranger": 0.25}) == "fits 50%, stranger 25%"
