"""The threshold p, chosen from the experts' own queries."""

from pathlib import Path

import pytest
import torch

from glider.errors import PoolError
from glider.routing.base import Condition
from glider.routing.calibrate import best_threshold, calibrate_threshold
from glider.routing.glider import Glider


def test_threshold_separates_what_can_be_separated() -> None:
    stored = best_threshold(torch.tensor([0.6, 0.7, 0.9]), torch.tensor([0.1, 0.3, 0.5]), "a test")
    assert stored.p == pytest.approx(0.55)
    assert "balanced accuracy 1.000" in stored.source and "AUC 1.000" in stored.source


def test_overlapping_scores_give_the_best_balanced_accuracy() -> None:
    held_in, held_out = torch.rand(50) * 0.6 + 0.3, torch.rand(70) * 0.6
    stored = best_threshold(held_in, held_out, "a test")

    def accuracy(p: float) -> float:
        return ((held_in > p).float().mean() + (held_out <= p).float().mean()).item() / 2

    assert accuracy(stored.p) >= max(accuracy(p / 1000) for p in range(1000)) - 0.02


def test_calibration_is_stored_and_used_by_the_router(make_pool, llama_directory: Path) -> None:
    pool = make_pool(llama_directory)
    queries = {e.name: e.instruction + 0.3 * torch.randn(20, len(e.instruction)) for e in pool}
    pool = pool.calibrate(calibrate_threshold(pool, queries, "a test"))
    reopened = pool.reload()
    assert reopened.index.calibration == pool.index.calibration
    router = Glider()
    prepared = router.prepare(reopened)
    own = torch.stack([queries[name][0] for name in reopened.names])
    strange = torch.randn(3, own.shape[1])
    condition: Condition = router.condition(prepared, torch.cat([own, strange]))
    assert condition.alpha.tolist() == [103.0] * 3 + [3.0] * 3
    assert Glider(p=2.0).prepare(reopened).global_term.p == 2.0  # pyright: ignore  a setting goes before the calibration


def test_too_few_queries_are_refused(make_pool, llama_directory: Path) -> None:
    pool = make_pool(llama_directory)
    with pytest.raises(PoolError, match="16 queries of expert e0"):
        calibrate_threshold(pool, {name: torch.randn(3, 384) for name in pool.names}, "a test")
    with pytest.raises(PoolError, match="two experts"):
        calibrate_threshold(make_pool(llama_directory, experts=1, name="small"), {}, "a test")
