"""Experts that a query's global term puts out of reach are not scored, and no decision changes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.layers.kernels import native
from glider.layers.kernels.native import NativeSite
from glider.routing.base import Decision

from .cases import Case, random_case

extension = native.extension()
pytestmark = pytest.mark.skipif(extension is None, reason=f"no native kernel: {native.why_absent()}")
ISAS = extension.isas() if extension is not None else []


def both(case: Case, query_of: torch.Tensor | None = None) -> tuple[Decision, Decision]:
    """The decisions with experts left out, and of all experts scored (a site without 8-bit rows has no such bound)."""
    sites = (NativeSite(case.bank, case.site, case.linear, shortlist) for shortlist in (True, False))
    kept = min(case.linear.k, case.bank.A.shape[0])
    near, full = (site.decide(case.x, kept, case.term, query_of) for site in sites)
    return near, full


def check(near: Decision, full: Decision) -> None:
    """The same experts in the same proportions. Of p / (sum p + 1e-6), the sum is between that of all and one."""
    assert torch.equal(near.experts, full.experts)
    assert torch.equal(near.weights.isnan(), full.weights.isnan())
    own, all_ = (decision.weights.nan_to_num(1.0).sum(dim=1, keepdim=True) for decision in (near, full))
    torch.testing.assert_close(near.weights / own, full.weights / all_, atol=1e-6, rtol=1e-5, equal_nan=True)
    assert (own >= all_ - 1e-6).all()
    assert (own[~near.weights.isnan().any(dim=1)] <= 1 + 1e-6).all()


def cosines(queries: int, experts: int, seed: int) -> torch.Tensor:
    """As of descriptions of tasks."""
    return 0.27 + 0.13 * torch.randn(queries, experts, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ISAS)
@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    tokens=st.sampled_from([17, 64, 70, 150]),
    experts=st.sampled_from([48, 64, 129, 300]),
    width=st.sampled_from([2, 16, 37, 64]),
    k=st.sampled_from([1, 2, 8, 9]),
    alpha=st.sampled_from([0.0, 3.0, 30.0, 103.0, -103.0, 1e4, 1e7]),
    queries=st.integers(1, 5),
    mapped=st.sampled_from(["even", "runs", "mixed"]),
    standardised=st.booleans(),
    absolute=st.booleans(),
    absent=st.sampled_from([0, 3, 40]),
    excluded=st.sampled_from([0, 5, 60, 1000]),
    rounded=st.booleans(),
    twins=st.booleans(),
    broken=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_decision_is_that_of_all_experts(
    name: str,
    tokens: int,
    experts: int,
    alpha: float,
    queries: int,
    mapped: str,
    excluded: int,
    rounded: bool,
    twins: bool,
    broken: bool,
    seed: int,
    **given,
) -> None:
    assert extension is not None
    case = random_case(seed, tokens=tokens, experts=experts, **given)
    chance = torch.Generator().manual_seed(seed)
    scores = cosines(queries, experts, seed)
    if rounded:  # so that terms are equal
        scores = (10 * scores).round() / 10
    if twins:  # so that scores are equal
        rows = case.linear.scores.rows
        assert rows is not None
        rows[~case.site.absent] = rows[~case.site.absent][0].clone()
    term = alpha * scores
    term[:, torch.randperm(experts, generator=chance)[: min(excluded, experts - 1)]] = -torch.inf
    mixed = torch.randint(queries, (tokens,), generator=chance)
    even = torch.arange(tokens) * queries // tokens
    query_of = {"even": even, "runs": mixed.sort().values, "mixed": mixed}[mapped]
    if broken:
        case.x[tokens // 2, 0] = torch.nan
    before = extension.isa()
    extension.use_isa(name)
    try:
        check(*both(replace(case, term=term), query_of))
    finally:
        extension.use_isa(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_what_is_in_reach(threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        case = random_case(1, tokens=520, experts=500, width=96)
        check(*both(replace(case, term=103 * cosines(4, 500, 1))))
    finally:
        torch.set_num_threads(1)


def test_experts_out_of_reach_are_not_scored() -> None:
    """A row that nobody reads may hold anything; where all are scored, one that is not a number spoils the token."""
    case = random_case(2, tokens=64, experts=200, width=64)
    case = replace(case, term=103 * cosines(1, 200, 2))
    rows, term = case.linear.scores.rows, case.term
    assert rows is not None and term is not None
    wanted = both(case)[1]
    sites = [NativeSite(case.bank, case.site, case.linear, shortlist) for shortlist in (True, False)]
    rows[term[0].argmin()] = torch.nan
    near, full = (site.decide(case.x, 2, case.term) for site in sites)
    check(near, wanted)
    assert full.weights.isnan().all()


def test_a_global_term_that_is_not_a_number_is_never_out_of_reach() -> None:
    case = random_case(3, tokens=64, experts=200, width=64)
    term = 103 * cosines(1, 200, 3)
    term[0, 7] = torch.nan
    near, full = both(replace(case, term=term))
    assert near.weights.isnan().all() and full.weights.isnan().all()


def test_one_token_brings_an_expert_into_reach_by_its_own() -> None:
    """Most experts are out of reach; of those that are not, one is chosen by a single token: its own gate."""
    case = random_case(4, tokens=64, experts=100, width=64)  # local scores are at most 8
    rows, term = case.linear.scores.rows, torch.full((1, 100), -100.0)
    assert rows is not None
    term[0, :20], term[0, 99] = 0.0, -4.0
    case.x[5] = rows[99]
    near, full = both(replace(case, term=term))
    check(near, full)
    assert near.experts[5, 0] == 99
    assert (near.experts[:5] < 20).all()
