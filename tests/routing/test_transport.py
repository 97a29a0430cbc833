"""The plans against plain statements of what they are."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from glider.routing.methods.expert_choice import ExpertChoice
from glider.routing.transport import sinkhorn, sparse_plan


def test_sinkhorn_is_the_scaling_of_rows_and_columns() -> None:
    scores = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    plan = np.exp(scores.double().numpy())
    for _ in range(5000):
        plan = plan * (7 / 3 / plan.sum(axis=0, keepdims=True))
        plan = plan / plan.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(sinkhorn(scores, 500).numpy(), plan, atol=1e-6)
    torch.testing.assert_close(sinkhorn(scores, 1).sum(dim=1), torch.ones(7))


def test_without_a_bound_the_sparse_plan_is_the_quadratic_one() -> None:
    scores = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double().numpy()
    gamma = 0.7

    def loss(flat: np.ndarray) -> float:
        return float(-(flat.reshape(5, 3) * scores).sum() + gamma / 2 * (flat**2).sum())

    rows = {"type": "eq", "fun": lambda flat: flat.reshape(5, 3).sum(axis=1) - 1}
    columns = {"type": "eq", "fun": lambda flat: flat.reshape(5, 3).sum(axis=0)[:2] - 5 / 3}
    start = np.full(15, 1 / 3)
    wanted = minimize(loss, start, bounds=[(0, None)] * 15, constraints=[rows, columns], method="SLSQP", tol=1e-12)
    plan = sparse_plan(torch.tensor(scores).float(), 5, gamma, 3000)
    np.testing.assert_allclose(plan.numpy(), wanted.x.reshape(5, 3), atol=1e-4)


@pytest.mark.parametrize("most", [4, 6])
def test_no_column_of_the_sparse_plan_has_more_tokens_than_it_may(most: int) -> None:
    scores = torch.randn(12, 4, generator=torch.Generator().manual_seed(2))
    plan = sparse_plan(scores, most, 1.0, 400)
    assert ((plan > 0).sum(dim=0) <= most).all() and (plan >= 0).all()
    torch.testing.assert_close(plan.sum(dim=0), torch.full((4,), 3.0), atol=1e-5, rtol=0)
    if most == 6:
        assert (plan.sum(dim=1) - 1).abs().mean() < 0.15  # near: with a bound the dual need not meet it
    spread = sparse_plan(torch.zeros(12, 4), 12, 1.0, 50)
    torch.testing.assert_close(spread, torch.full((12, 4), 0.25))


def test_a_small_gamma_leaves_every_column_its_mass() -> None:
    scores = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    plan = sparse_plan(scores, 5, 1e-30, 30)
    torch.testing.assert_close(plan.sum(dim=0), torch.full((3,), 7 / 3))


def test_a_plan_that_has_not_converged_gives_no_token_more_than_one() -> None:
    scores = 30 * torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    assert sparse_plan(scores, 15, 1.0, 30).sum(dim=1).max() > 2
    assert ExpertChoice("sparse").together(scores).sum(dim=1).max() <= 1 + 1e-6
