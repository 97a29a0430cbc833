"""Float32 in tiles of bfloat16, which a processor with AMX multiplies: nothing of float32 is lost on the way.

Many tokens and experts of bfloat16 go that way there; elsewhere the same is asked of what stands in its place.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.layers.bank import Bank
from glider.layers.kernels import native
from glider.layers.kernels.native import NativeSite
from glider.routing.base import Decision, Site
from glider.routing.linear import LinearScores, LinearTopK

from .cases import random_case
from .test_native import check
from .test_native_bfloat16 import using

extension = native.extension()
pytestmark = pytest.mark.skipif(extension is None, reason=f"no native kernel: {native.why_absent()}")
ISAS = extension.isas() if extension is not None else []
often = settings(deadline=None, derandomize=True, max_examples=30)
LONG = 1 + 2**-8 - 2**-17 - 2**-23  # what two bfloat16 lack of it is as much as it can be


@pytest.mark.parametrize("name", ISAS)
@often
@given(
    tokens=st.sampled_from([128, 141, 300]),
    experts=st.sampled_from([16, 17, 36, 80, 191, 192, 230]),
    rank=st.sampled_from([1, 5, 16, 20, 40, 128, 130]),
    width=st.sampled_from([2, 33, 64, 600]),
    out=st.sampled_from([1, 16, 33, 70, 130]),
    k=st.sampled_from([1, 2, 5, 200]),
    renormalise=st.booleans(),
    standardised=st.booleans(),
    absolute=st.booleans(),
    conditioned=st.booleans(),
    absent=st.integers(0, 3),
    shortlist=st.booleans(),
    seed=st.integers(0, 999),
)
def test_many_tokens_of_bfloat16_experts(name: str, conditioned: bool, shortlist: bool, **given) -> None:
    with using(name):
        check(random_case(queries=1 if conditioned else None, dtype=torch.bfloat16, **given), shortlist)


def bank_of(experts: int, rank: int, width: int, out: int) -> Bank:
    """Experts of ones, so that errors of inputs and of codes add up."""
    a, b = torch.ones(experts, rank, width), torch.ones(experts, out, rank)
    return Bank(a.bfloat16(), b.bfloat16(), torch.ones(experts))


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize(("rank", "width", "out"), [(16, 64, 70), (40, 37, 16), (5, 70, 1)])
def test_outputs_keep_the_bits_of_float32(one: bool, rank: int, width: int, out: int, isa: str) -> None:
    """Of tokens with experts of their own, and of a run that shares them."""
    bank = bank_of(3, rank, width, out)
    x, y = torch.full((60, width), LONG), torch.zeros(60, out)
    experts = torch.zeros(60, 1, dtype=torch.long) if one else torch.arange(60)[:, None] % 3
    NativeSite(bank, None, None).apply(y, x, Decision(experts, torch.full((60, 1), LONG)))
    exact = torch.full((60, out), rank * width * LONG**2)  # rounded once
    torch.testing.assert_close(y, exact, rtol=2.0**-20, atol=0)


@pytest.mark.parametrize("experts", [36, 70])
def test_scores_keep_the_bits_of_float32(experts: int, isa: str) -> None:
    """One row is longer than all others by 2^-20 of its values, which seventeen bits of each do not show."""
    rows = torch.full((experts, 64), LONG)
    rows[11] *= 1 + 2**-20
    site = Site("s", torch.zeros(experts, dtype=torch.bool), {})
    decider = NativeSite.deciding(64, site, LinearTopK(LinearScores(rows), 1, True), shortlist=False)
    got = decider.decide(torch.full((130, 64), LONG), 1)
    assert got.experts.unique().tolist() == [11]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_token_among_many_stays_alone(broken: float, isa: str) -> None:
    case = random_case(3, tokens=150, experts=36, rank=16, width=70, dtype=torch.bfloat16)
    site = NativeSite(case.bank, case.site, case.linear)
    whole, y = case.y.clone(), case.y.clone()
    site.route(whole, case.x, None, None)
    x = case.x.clone()
    x[77, 5] = broken
    site.route(y, x, None, None)
    assert y[77].isnan().all()
    others = torch.arange(150) != 77
    torch.testing.assert_close(y[others], whole[others], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("broken", [torch.inf, -torch.inf])
def test_an_infinite_value_shows_in_the_output(broken: float, isa: str) -> None:
    for experts in (torch.zeros(60, 1, dtype=torch.long), torch.arange(60)[:, None] % 3):
        x, y = torch.ones(60, 40), torch.zeros(60, 20)
        x[7, 3] = broken
        NativeSite(bank_of(3, 16, 40, 20), None, None).apply(y, x, Decision(experts, torch.ones(60, 1)))
        assert not y[7].isfinite().any()
        assert (y[torch.arange(60) != 7] == 640).all()


@pytest.mark.parametrize("name", ISAS)
@often
@given(
    experts=st.integers(1, 70),
    k=st.integers(1, 6),
    kinds=st.sampled_from([2, 5, 1000]),
    absent=st.sampled_from([0.0, 0.3, 0.95]),
    tokens=st.sampled_from([1, 130]),
    seed=st.integers(0, 999),
)
def test_the_largest_scores_in_order(
    name: str, experts: int, k: int, kinds: int, absent: float, tokens: int, seed: int
) -> None:
    """Whole numbers, many of them alike: the first of equals first, and none that is absent while others are there."""
    chance = torch.Generator().manual_seed(seed)
    scores = torch.randint(-kinds, kinds, (experts,), generator=chance) / kinds
    missing = torch.rand(experts, generator=chance) < absent
    site = Site("s", missing, {})
    with using(name):
        decider = NativeSite.deciding(1, site, LinearTopK(LinearScores(scores[:, None]), k, True), shortlist=False)
        got = decider.decide(torch.ones(tokens, 1), min(k, experts))
    there = scores.masked_fill(missing, -torch.inf).sort(descending=True, stable=True).indices
    there = there[: min(k, experts, int((~missing).sum()))]
    for row, weights in zip(got.experts, got.weights, strict=True):
        assert row[weights > 0].tolist() == there.tolist()
