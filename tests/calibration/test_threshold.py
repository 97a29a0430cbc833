"""The threshold p, chosen from the experts' own queries."""

from pathlib import Path

import pytest
import torch

from glider.calibration import threshold, verdict
from glider.calibration.threshold import best_threshold, calibrate, recalibrated, sample, still_stands
from glider.errors import GliderWarning, PoolError, RouterError
from glider.experts.membership import remove_expert
from glider.experts.pool import Calibration
from glider.routing.base import QueryFeatures
from glider.routing.methods.glider import Glider


def test_threshold_separates_what_can_be_separated() -> None:
    p, accuracy, auc = best_threshold(torch.tensor([0.6, 0.7, 0.9]), torch.tensor([0.1, 0.3, 0.5]))
    assert (p, accuracy, auc) == (pytest.approx(0.55), 1, 1)


def test_overlapping_scores_give_the_best_balanced_accuracy_and_the_area() -> None:
    held_in, held_out = torch.rand(50) * 0.6 + 0.3, torch.rand(70) * 0.6

    def balanced(p: float) -> float:
        return ((held_in > p).float().mean() + (held_out <= p).float().mean()).item() / 2

    p, accuracy, auc = best_threshold(held_in, held_out)
    assert accuracy == pytest.approx(balanced(p))
    assert accuracy >= max(balanced(p / 1000) for p in range(1000)) - 1e-6
    assert auc == pytest.approx((held_in[:, None] > held_out[None]).float().mean().item(), abs=1e-5)


def test_ties_count_half_in_the_area() -> None:
    assert best_threshold(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))[2] == pytest.approx(0.875)


@pytest.mark.parametrize("signal", ["examples", "ensemble", "instruction", "hidden"])
def test_calibration_needs_nothing_but_the_profiles_and_is_used(pool_with_profiles, signal: str) -> None:
    pool = pool_with_profiles()
    stored = calibrate(pool, signal)
    assert stored.experts == ("e0", "e1", "e2") and stored.queries == 3 * 24
    assert stored.auc is not None and stored.auc > {"instruction": 0, "hidden": 0.8}.get(signal, 0.95)
    pool = pool.calibrate(signal, stored).reload()
    assert pool.index.calibrations[signal] == stored
    term = Glider().prepare(pool).global_term
    assert term is not None and (term.signal, term.p, term.gamma) == (signal, stored.p, 100)
    assert Glider(p=2.0).prepare(pool).global_term.p == 2.0  # pyright: ignore  a setting goes before the calibration


def test_a_calibrated_pool_knows_its_queries_from_strange_ones(pool_with_profiles) -> None:
    pool = pool_with_profiles()
    pool = pool.calibrate("examples", calibrate(pool, "examples"))
    router = Glider()
    prepared = router.prepare(pool)
    own = tuple((expert.profile.queries[0],) for expert in pool)
    strange = ((torch.arange(1, 30),),)
    condition = router.condition(prepared, QueryFeatures(len(own + strange), grams=own + strange))
    assert condition is not None and set(condition.signals) == {"examples"}
    assert condition.alpha.tolist() == [103.0] * 3 + [3.0]


def test_twins_leave_a_threshold_that_strangers_do_not_reach(pool_with_profiles) -> None:
    """Nothing parts the queries of one from those of the other: everything fitted that was no stranger, or nothing."""
    pool, other = pool_with_profiles(), pool_with_profiles(name="other")
    pool = pool.remove("e2").add(other.path / "e0", "twin0").add(other.path / "e1", "twin1")
    stored = calibrate(pool, "examples")
    assert stored.auc is not None and stored.auc < 0.6
    scores = Glider().prepare(pool.calibrate("examples", stored)).global_term.scores  # pyright: ignore
    own = tuple((query,) for query in pool["e0"].profile.queries)
    strange = ((torch.arange(1, 30),),)
    best = scores.of(QueryFeatures(len(own) + 1, grams=own + strange)).amax(dim=-1)
    assert (best[:-1] > stored.p).float().mean() >= 0.9 and best[-1] < stored.p


def test_gamma_and_beta_are_kept_when_p_is_chosen_anew(pool_with_profiles) -> None:
    pool = pool_with_profiles()
    pool = pool.calibrate("examples", Calibration(p=9, gamma=7, beta=1, source="a test"))
    anew = calibrate(pool, "examples")
    assert (anew.gamma, anew.beta) == (7, 1) and anew.p < 9


def test_a_pool_that_grew_is_recalibrated_from_the_profiles(pool_with_profiles) -> None:
    pool = pool_with_profiles()
    pool = pool.calibrate("examples", calibrate(pool, "examples"))
    assert recalibrated(pool) is pool
    remove_expert(pool.path, "e2")
    smaller = pool.reload()
    again = recalibrated(smaller)
    assert again.index.calibrations["examples"].experts == ("e0", "e1")
    assert again.index.calibrations["examples"] == calibrate(smaller, "examples")


def test_a_calibration_that_cannot_be_redone_stays(make_pool, llama_directory: Path) -> None:
    pool = make_pool(llama_directory).calibrate("instruction", Calibration(p=0.6, experts=("other",), source="a test"))
    with pytest.warns(GliderWarning, match="instruction is that of other experts.*profile"):
        assert recalibrated(pool).index.calibrations["instruction"].p == 0.6


def test_too_few_queries_are_refused(make_pool, llama_directory: Path, pool_with_profiles) -> None:
    few = {name: QueryFeatures(3, torch.randn(3, 384)) for name in ("e0", "e1", "e2")}
    with pytest.raises(PoolError, match="16 held-back queries"):
        calibrate(pool_with_profiles(), "instruction", few)
    some = {**few, "e1": QueryFeatures(16, torch.randn(16, 384)), "e2": QueryFeatures(16, torch.randn(16, 384))}
    stored = calibrate(pool_with_profiles(name="some"), "instruction", some)
    assert stored.queries == 32 and "without e0" in stored.source
    with pytest.raises(PoolError, match="two experts"):
        calibrate(make_pool(llama_directory, experts=1, name="small"), "instruction")
    with pytest.raises(RouterError, match="profile"):
        calibrate(make_pool(llama_directory, name="bare"), "instruction")


def test_a_few_experts_stand_for_a_large_pool_and_stay_the_same_as_it_grows(pool_with_profiles, monkeypatch) -> None:
    names = [f"expert{i}" for i in range(200)]
    few = sample(names, 128, 32)
    assert len(few) == 32 and few <= set(names) and sample(names[:128], 128, 32) == names[:128]
    grown = sample([*names, "one more"], 128, 32)
    assert len(set(few) - set(grown)) <= 1

    pool = pool_with_profiles()
    whole = calibrate(pool, "examples")
    monkeypatch.setattr(threshold, "MANY_EXPERTS", 2)
    monkeypatch.setattr(threshold, "SAMPLED_EXPERTS", 2)
    part = calibrate(pool, "examples")
    assert (whole.queries, part.queries) == (72, 48)
    assert "2 experts for those of 3" in part.source and "for those of" not in whole.source
    monkeypatch.setattr(verdict, "MANY_EXPERTS", 2)
    monkeypatch.setattr(verdict, "SAMPLED_EXPERTS", 2)
    assert verdict.choose_thresholds(pool).queries == 48


def test_what_a_large_pool_chose_stands_until_one_in_twenty_experts_changed(pool_with_profiles, monkeypatch) -> None:
    names = [f"expert{i}" for i in range(1000)]
    assert still_stands(names, [*names[25:], *(f"new{i}" for i in range(25))])
    assert not still_stands(names, [*names[25:], *(f"new{i}" for i in range(26))])
    assert still_stands(names[:256], names[:256]) and not still_stands(names[:255], names[:256])

    pool = pool_with_profiles()
    stored = calibrate(pool, "examples").model_copy(update={"experts": ("e0", "e1")})
    pool = pool.calibrate("examples", stored)
    monkeypatch.setattr(threshold, "LARGE_POOL", 2)
    assert recalibrated(pool).index.calibrations["examples"].experts == ("e0", "e1", "e2")  # a third of them is new
    monkeypatch.setattr(threshold, "CHANGED", 0.5)
    assert recalibrated(pool) is pool
    thresholds = verdict.choose_thresholds(pool).model_copy(update={"names": ("e0", "e1")})
    assert verdict.renewed_thresholds(pool.set_verdicts(thresholds)).index.verdicts == thresholds
