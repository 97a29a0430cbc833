"""The reference kernel against a plain double loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.layers.bank import Bank
from glider.layers.kernels.reference import apply_experts
from glider.routing.base import Decision
from glider.routing.select import TopK, TopP


def random_bank(experts: int, rank: int, width: int, out: int, dtype: torch.dtype = torch.float32) -> Bank:
    chance = torch.Generator().manual_seed(experts + 10 * rank)
    a = torch.randn(experts, rank, width, generator=chance).to(dtype)
    b = torch.randn(experts, out, rank, generator=chance).to(dtype)
    return Bank(a, b, torch.rand(experts, generator=chance) + 0.1)


def random_case(tokens: int, experts: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, width, generator=chance), torch.randn(tokens, experts, generator=chance)


def looped(x: torch.Tensor, decision: Decision, bank: Bank) -> torch.Tensor:
    """One token and one kept expert at a time, in float64."""
    rows = []
    for token, experts, weights in zip(x.double(), decision.experts, decision.weights.double(), strict=True):
        total = torch.zeros(bank.B.shape[1], dtype=torch.float64)
        for expert, weight in zip(experts, weights, strict=True):
            change = bank.B[expert].double() @ (bank.A[expert].double() @ token)
            total += weight * bank.scaling[expert].double() * change
        rows.append(total)
    return torch.stack(rows) if rows else torch.zeros(0, bank.B.shape[1], dtype=torch.float64)


@settings(deadline=None, derandomize=True)
@given(
    st.integers(0, 6),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([TopK(1), TopK(2), TopK(6), TopP(0.4), TopP(0.9)]),
    st.integers(0, 999),
)
def test_kernel_equals_a_double_loop(
    tokens: int, experts: int, rank: int, width: int, out: int, select: TopK | TopP, seed: int
) -> None:
    x, scores = random_case(tokens, experts, width, seed)
    bank, decision = random_bank(experts, rank, width, out), select(scores)
    got = apply_experts(x, decision, bank)
    torch.testing.assert_close(got.double(), looped(x, decision, bank), atol=1e-4, rtol=1e-4)


def test_an_expert_named_twice_counts_twice() -> None:
    x, _ = random_case(2, 3, 4)
    bank = random_bank(3, 2, 4, 5)
    decision = Decision(torch.tensor([[1, 1], [2, 2]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    torch.testing.assert_close(apply_experts(x, decision, bank).double(), looped(x, decision, bank))


def test_gradients_are_those_of_the_loop() -> None:
    x, scores = random_case(3, 4, 5)
    bank = random_bank(4, 2, 5, 6)
    gradients = []
    for compute in (apply_experts, looped):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, scores, bank.A, bank.B)]
        own = Bank(leaves[2], leaves[3], bank.scaling)
        compute(leaves[0], TopK(2)(leaves[1]), own).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)
        assert got.abs().sum() > 0


def test_a_broken_token_stays_alone() -> None:
    x, scores = random_case(4, 3, 5)
    bank, decision = random_bank(3, 2, 5, 6), TopK(2)(scores)
    clean = apply_experts(x, decision, bank)
    x[1] = torch.nan
    got = apply_experts(x, decision, bank)
    assert got[1].isnan().all()
    others = [0, 2, 3]
    torch.testing.assert_close(got[others], clean[others])


def test_an_expert_that_is_not_kept_cannot_break_a_token() -> None:
    x, _ = random_case(2, 2, 4)
    bank = random_bank(2, 2, 4, 3)
    bank.A[1] = torch.inf
    decision = Decision(torch.tensor([[0, 1], [0, 1]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert torch.isfinite(apply_experts(x, decision, bank)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_has_the_dtype_of_x(dtype: torch.dtype) -> None:
    x, scores = random_case(3, 4, 8)
    bank, decision = random_bank(4, 2, 8, 5, torch.bfloat16), TopK(2)(scores)
    got = apply_experts(x.to(dtype), decision, bank)
    assert got.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(got.double(), looped(x, decision, bank), atol=tolerance, rtol=tolerance)


def test_x_may_be_a_view() -> None:
    x, scores = random_case(4, 3, 10)
    strided = x[:, ::2]
    assert not strided.is_contiguous()
    bank, decision = random_bank(3, 2, 5, 6), TopK(2)(scores)
    got = apply_experts(strided, decision, bank)
    assert torch.equal(got, apply_experts(strided.contiguous(), decision, bank))
