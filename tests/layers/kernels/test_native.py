"""The native kernel: its decisions are the routers', on every instruction set of this machine, alone or in threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.layers.kernels import native
from glider.layers.kernels.native import NativeSite
from glider.layers.kernels.reference import apply_experts
from glider.routing.base import Decision
from glider.routing.linear import LinearScores, LinearTopK

from .cases import Case, random_case

extension = native.extension()
pytestmark = pytest.mark.skipif(extension is None, reason=f"no native kernel: {native.why_absent()}")
ISAS = extension.isas() if extension is not None else []
often = settings(deadline=None, derandomize=True, max_examples=100)


def check(case: Case, shortlist: bool) -> None:
    """The weights of plain PyTorch, for the same experts unless scores are equal, and the output of that decision."""
    site, wanted = NativeSite(case.bank, case.site, case.linear, shortlist), case.decision()
    got = site.decide(case.x, wanted.experts.shape[1], case.term)
    torch.testing.assert_close(got.weights, wanted.weights, atol=1e-5, rtol=1e-4)
    scores = case.scores()
    kept = got.weights > 0
    for weights, experts in zip(kept, got.experts, strict=True):
        assert len(set(experts[weights].tolist())) == int(weights.sum())
    own, best = (scores.gather(1, decision.experts).masked_fill(~kept, 0.0) for decision in (got, wanted))
    torch.testing.assert_close(own, best, atol=1e-5, rtol=1e-5)
    y = case.y.clone()
    site.route(y, case.x, case.term, None)
    torch.testing.assert_close(y, case.y + apply_experts(case.x, got, case.bank), atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("name", ISAS)
@often
@given(
    tokens=st.sampled_from([1, 2, 5, 16, 70]),
    experts=st.sampled_from([1, 2, 3, 9, 40, 129]),
    rank=st.sampled_from([1, 4, 9, 16]),
    width=st.sampled_from([2, 16, 37, 64]),
    out=st.sampled_from([1, 16, 70]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    k=st.sampled_from([1, 2, 3, 200]),
    renormalise=st.booleans(),
    standardised=st.booleans(),
    absolute=st.booleans(),
    conditioned=st.booleans(),
    absent=st.integers(0, 3),
    shortlist=st.booleans(),
    seed=st.integers(0, 999),
)
def test_decisions_and_outputs_are_those_of_pytorch(name: str, conditioned: bool, shortlist: bool, **given) -> None:
    assert extension is not None
    before = extension.isa()
    extension.use_isa(name)
    try:
        check(random_case(queries=1 if conditioned else None, **given), shortlist)
    finally:
        extension.use_isa(before)


@pytest.mark.parametrize("shortlist", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 8, 300])
def test_threads_change_nothing(tokens: int, threads: int, shortlist: bool, isa: str) -> None:
    """Large enough that work is shared: by experts for a few tokens, by tokens for many."""
    torch.set_num_threads(threads)
    try:
        case = random_case(7, tokens=tokens, experts=1100, rank=8, width=420, out=300, queries=1, absent=3)
        assert extension is not None and extension.threads() == threads
        check(case, shortlist)
    finally:
        torch.set_num_threads(1)


def test_each_query_has_its_own_term() -> None:
    case = random_case(8, tokens=12, queries=3)
    check(case, False)
    assert case.term is not None
    site, query_of = NativeSite(case.bank, case.site, case.linear), torch.tensor([2, 0, 1, 1, 0, 2, 2, 2, 0, 1, 0, 1])
    got = site.decide(case.x, 2, case.term, query_of)
    for token, query in enumerate(query_of):
        alone = site.decide(case.x[token : token + 1], 2, case.term[query : query + 1])
        assert torch.equal(got.experts[token], alone.experts[0])
        assert torch.equal(got.weights[token], alone.weights[0])


@pytest.mark.parametrize("shortlist", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_of_equal_scores_the_first_is_kept(k: int, shortlist: bool, isa: str) -> None:
    case = random_case(9, experts=40, k=k)
    rows = case.linear.scores.rows
    assert rows is not None
    rows[:] = rows[0].clone()
    got = NativeSite(case.bank, case.site, case.linear, shortlist).decide(case.x, k)
    assert got.experts.tolist() == [list(range(k))] * len(case.x)
    torch.testing.assert_close(got.weights, torch.full_like(got.weights, 1 / k), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shortlist", [False, True])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_token_stays_alone(broken: float, shortlist: bool, isa: str) -> None:
    case = random_case(10, tokens=20, experts=60)
    site = NativeSite(case.bank, case.site, case.linear, shortlist)
    clean, got = case.y.clone(), case.y.clone()
    site.route(clean, case.x, None, None)
    case.x[3, 5] = broken
    site.route(got, case.x, None, None)
    assert got[3].isnan().all()
    others = [i for i in range(20) if i != 3]
    assert torch.equal(got[others], clean[others])


@pytest.mark.parametrize("shortlist", [False, True])
def test_experts_out_of_reach_change_nothing(shortlist: bool, isa: str) -> None:
    """A global score of minus infinity, as of an expert that a caller rules out; even all but one."""
    case = random_case(11, tokens=4, experts=50, queries=1, k=3)
    assert case.term is not None
    case.term[0, :49] = -torch.inf
    got = NativeSite(case.bank, case.site, case.linear, shortlist).decide(case.x, 3, case.term)
    assert got.experts[:, 0].tolist() == [49] * 4
    torch.testing.assert_close(got.weights, torch.tensor([[1.0, 0, 0]]).expand(4, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shortlist", [False, True])
def test_tokens_without_an_expert_in_reach_stay_as_they_are(shortlist: bool, isa: str) -> None:
    """A caller may rule out all experts that a site has."""
    case = random_case(11, tokens=4, experts=50, queries=2, k=3, absent=10)
    assert case.term is not None
    case.term[0, ~case.site.absent] = -torch.inf
    case.x[1, 0] = torch.nan
    site, got = NativeSite(case.bank, case.site, case.linear, shortlist), case.y.clone()
    assert site.decide(case.x, 3, case.term).weights[0].tolist() == [0, 0, 0]
    site.route(got, case.x, case.term, None)
    assert torch.equal(got[0], case.y[0])
    assert got[1].isnan().all()
    assert not torch.equal(got[2], case.y[2])


def test_the_shortlist_has_the_decision_of_float32_where_scores_are_close(isa: str) -> None:
    """Rows that differ by less than their 8-bit steps: without scoring again, half of the decisions would be others."""
    chance = torch.Generator().manual_seed(0)
    case = random_case(12, tokens=16, experts=200, width=256)
    rows = case.linear.scores.rows
    assert rows is not None
    rows[:] = rows[0] + 0.003 * torch.randn(rows.shape, generator=chance)
    double = (case.x.double() - case.x.double().mean(1, keepdim=True)) @ rows.double().T
    got = NativeSite(case.bank, case.site, case.linear, True).decide(case.x, 2)
    best = double.topk(2).indices.sort().values
    assert torch.equal(got.experts.sort().values, best)


def test_tiles_have_the_decision_of_float32_where_scores_are_close(isa: str) -> None:
    """Many tokens and experts, whose scores differ by less than products of two bfloat16 for each value are off."""
    chance = torch.Generator().manual_seed(0)
    case = random_case(12, tokens=96, experts=200, width=256)
    rows = case.linear.scores.rows
    assert rows is not None
    rows[:] = rows[0] + 3e-5 * torch.randn(rows.shape, generator=chance)
    scores = (case.x.double() - case.x.double().mean(1, keepdim=True)) @ rows.double().T / 16
    got = NativeSite(case.bank, case.site, case.linear, True).decide(case.x, 2)
    lost = scores.topk(2).values - scores.gather(1, got.experts).sort(descending=True).values
    assert lost.max() < 2e-6


def test_a_large_mean_costs_no_precision(isa: str) -> None:
    case = random_case(13, tokens=9, experts=30, width=64)
    case.x.add_(100.0)
    site = NativeSite(case.bank, case.site, case.linear)
    wanted = case.decision()
    got = site.decide(case.x, 2)
    torch.testing.assert_close(got.weights, wanted.weights, atol=1e-3, rtol=0)


def test_a_constant_token_scores_zero(isa: str) -> None:
    """Its variance is zero: 1e-5 keeps the division finite."""
    case = random_case(14, tokens=2, experts=4)
    case.x[:] = 3.0
    got = NativeSite(case.bank, case.site, case.linear).decide(case.x, 2)
    torch.testing.assert_close(got.weights, torch.full((2, 2), 0.5), atol=1e-3, rtol=0)


def test_one_expert_without_rows_has_weight_one(isa: str) -> None:
    case = random_case(15, experts=1, tokens=5)
    site = NativeSite(case.bank, case.site, LinearTopK(LinearScores(None), 1, False))
    y, ones = case.y.clone(), Decision(torch.zeros(5, 1, dtype=torch.long), torch.ones(5, 1))
    site.route(y, case.x, None, None)
    torch.testing.assert_close(y, case.y + apply_experts(case.x, ones, case.bank), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("expert", [-1, 5])
def test_a_decision_for_an_expert_that_is_not_there_is_refused(expert: int) -> None:
    case = random_case(16, tokens=1, experts=5)
    y, decision = case.y.clone(), Decision(torch.tensor([[0, expert]]), torch.ones(1, 2))
    with pytest.raises(IndexError, match="does not exist"):
        NativeSite(case.bank, case.site, None).apply(y, case.x, decision)
    assert torch.equal(y, case.y)


def test_threads_that_call_at_once_do_not_meet() -> None:
    """Two models in two threads: memory that one call uses belongs to its thread."""
    cases = [random_case(seed, tokens=90, experts=20 + seed, width=64, out=48) for seed in range(4)]
    sites = [NativeSite(case.bank, case.site, case.linear) for case in cases]
    wanted = []
    for case, site in zip(cases, sites, strict=True):
        y = case.y.clone()
        site.route(y, case.x, None, None)
        wanted.append(y)
    start = threading.Barrier(4)

    def work(index: int) -> bool:
        start.wait()
        for _ in range(50):
            y = cases[index].y.clone()
            sites[index].route(y, cases[index].x, None, None)
            if not torch.equal(y, wanted[index]):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_wrong_arguments_are_errors() -> None:
    assert extension is not None
    with pytest.raises(TypeError, match="route"):
        extension.route(1, 2)
    with pytest.raises(TypeError, match="tuple of sites"):
        extension.route(1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="PyCapsule"):
        extension.route((1,), 0, (0,), 0, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="instruction set"):
        extension.use_isa("abacus")


def test_an_absent_expert_is_never_kept(isa: str) -> None:
    case = random_case(17, tokens=30, experts=4, absent=2, k=4)
    got = NativeSite(case.bank, case.site, case.linear).decide(case.x, 4)
    for experts, weights in zip(got.experts.tolist(), got.weights.tolist(), strict=True):
        assert all(weight == 0 for e, weight in zip(experts, weights, strict=True) if case.site.absent[e] and e != 0)
        assert sum(weights) == pytest.approx(1, abs=1e-4)


def test_what_is_constant_for_a_site_is_given_by_name() -> None:
    assert extension is not None
    with pytest.raises(TypeError, match="positional arguments"):
        extension.site(1, 4, 8, 8)
    with pytest.raises(TypeError, match="rank"):
        extension.site(experts=1)
