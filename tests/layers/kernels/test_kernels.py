"""Every kernel that applies a decision, against the reference."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.layers.bank import Bank
from glider.layers.kernels import native
from glider.layers.kernels.grouped import _gathered, add_experts
from glider.layers.kernels.native import NativeSite
from glider.layers.kernels.reference import apply_experts
from glider.routing.base import Decision
from glider.routing.select import TopK, TopP

from .cases import Case, random_case

Add = Callable[[torch.Tensor, torch.Tensor, Decision, Bank, Case], None]


def by_torch(y: torch.Tensor, x: torch.Tensor, decision: Decision, bank: Bank, case: Case) -> None:
    add_experts(y, x, decision, bank)


def by_gathering(y: torch.Tensor, x: torch.Tensor, decision: Decision, bank: Bank, case: Case) -> None:
    """What runs on other devices for a few tokens."""
    weights = decision.weights.to(x.dtype) * bank.scaling.to(x.dtype)[decision.experts]
    _gathered(y, x, Decision(decision.experts, weights), bank)


def by_native(y: torch.Tensor, x: torch.Tensor, decision: Decision, bank: Bank, case: Case) -> None:
    if native.extension() is None:
        pytest.skip(f"no native kernel: {native.why_absent()}")
    NativeSite(bank, case.site, None).apply(y, x.contiguous(), decision)


KERNELS = {"torch": by_torch, "gathered": by_gathering, "native": by_native}
kernels = pytest.mark.parametrize("add", KERNELS.values(), ids=KERNELS)
often = settings(deadline=None, derandomize=True, max_examples=60)


@kernels
@often
@given(
    tokens=st.sampled_from([0, 1, 2, 3, 7, 40, 130]),
    experts=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 31]),
    rank=st.sampled_from([1, 2, 4, 8, 9, 16, 17]),
    width=st.sampled_from([1, 3, 16, 33, 64]),
    out=st.sampled_from([1, 5, 16, 35, 80]),
    select=st.sampled_from([TopK(1), TopK(2), TopK(9), TopK(2, renormalise=False), TopP(0.4), TopP(0.9)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
)
def test_a_kernel_adds_what_the_reference_computes(
    add: Add, tokens: int, experts: int, rank: int, width: int, out: int, select: TopK, dtype: torch.dtype, seed: int
) -> None:
    case = random_case(seed, tokens=tokens, experts=experts, rank=rank, width=width, out=out, dtype=dtype, absent=1)
    decision = select(case.scores())
    wanted = case.y + apply_experts(case.x, decision, case.bank)
    got = case.y.clone()
    add(got, case.x, decision, case.bank, case)
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=2e-5)


@kernels
def test_an_expert_named_twice_counts_twice(add: Add) -> None:
    case = random_case(1, tokens=3)
    decision = Decision(torch.tensor([[1, 1], [2, 2], [0, 1]]), torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, -1.0]]))
    got = case.y.clone()
    add(got, case.x, decision, case.bank, case)
    torch.testing.assert_close(got, case.y + apply_experts(case.x, decision, case.bank))


@kernels
@pytest.mark.parametrize("tokens", [2, 40, 140])
def test_a_broken_token_stays_alone(add: Add, tokens: int) -> None:
    case = random_case(2, tokens=tokens)
    decision = case.decision()
    clean = case.y.clone()
    add(clean, case.x, decision, case.bank, case)
    case.x[1] = torch.nan
    got = case.y.clone()
    add(got, case.x, decision, case.bank, case)
    others = [i for i in range(tokens) if i != 1]
    assert got[1].isnan().all()
    torch.testing.assert_close(got[others], clean[others])


@kernels
@pytest.mark.parametrize("tokens", [2, 40, 140])
def test_an_expert_without_weight_cannot_break_a_token(add: Add, tokens: int) -> None:
    case = random_case(3, tokens=tokens)
    case.bank.A[1] = torch.inf
    decision = Decision(torch.tensor([[0, 1, 2]]).expand(tokens, 3), torch.tensor([[1.0, 0.0, 0.0]]).expand(tokens, 3))
    got = case.y.clone()
    add(got, case.x, decision, case.bank, case)
    assert torch.isfinite(got).all()


@kernels
@pytest.mark.parametrize("tokens", [2, 140])
def test_an_expert_that_no_token_has_cannot_break_one(add: Add, tokens: int) -> None:
    case = random_case(6, tokens=tokens)
    case.bank.B[1] = torch.inf
    decision = Decision(torch.tensor([[0, 2]]).expand(tokens, 2), torch.tensor([[0.5, 0.5]]).expand(tokens, 2))
    got = case.y.clone()
    add(got, case.x, decision, case.bank, case)
    assert torch.isfinite(got).all()


@kernels
@pytest.mark.parametrize("used", [1, 2, 23])
def test_experts_may_have_as_many_tokens_as_they_like(add: Add, used: int) -> None:
    """More pairs than the torch kernel takes at once, of experts with many tokens, few, one and none."""
    case = random_case(7, tokens=1300, experts=40, rank=5)
    chance = torch.Generator().manual_seed(8)
    experts = (torch.rand(1300, 2, generator=chance) ** 3 * used).long() * 40 // used
    experts[17] = 39
    decision = Decision(experts, torch.rand(1300, 2, generator=chance) - 0.3)
    got = case.y.clone()
    add(got, case.x, decision, case.bank, case)
    torch.testing.assert_close(got, case.y + apply_experts(case.x, decision, case.bank), atol=2e-5, rtol=2e-5)


@kernels
def test_x_may_be_a_view(add: Add) -> None:
    case = random_case(4, tokens=40, width=20)
    wide = torch.randn(40, 40)
    decision, strided = case.decision(), wide[:, ::2]
    got = case.y.clone()
    add(got, strided, decision, case.bank, case)
    torch.testing.assert_close(got, case.y + apply_experts(strided, decision, case.bank))


@pytest.mark.parametrize("tokens", [2, 9])
@pytest.mark.parametrize("experts", [1, 4])
def test_gradients_of_the_torch_kernel_are_those_of_the_reference(tokens: int, experts: int) -> None:
    case = random_case(5, tokens=tokens, experts=experts)
    scores = case.scores().detach()
    gradients = []
    for kernel in ("torch", "reference"):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (case.x, scores, case.bank.A, case.bank.B)]
        decision, bank = TopK(2)(leaves[1]), Bank(leaves[2], leaves[3], case.bank.scaling)
        if kernel == "torch":
            total = case.y * leaves[0].sum()
            add_experts(total, leaves[0], decision, bank)
        else:
            total = case.y * leaves[0].sum() + apply_experts(leaves[0], decision, bank)
        total.square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
