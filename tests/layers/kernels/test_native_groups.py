"""The native kernel for several sites at once, for some rows of an input, and for rows that lie apart."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.layers.kernels import native
from glider.layers.kernels.native import NativeGroup, NativeSite
from glider.layers.kernels.reference import apply_experts
from glider.routing.base import Decision

from .cases import Case, random_case

extension = native.extension()
pytestmark = pytest.mark.skipif(extension is None, reason=f"no native kernel: {native.why_absent()}")
ISAS = extension.isas() if extension is not None else []
often = settings(deadline=None, derandomize=True, max_examples=60)


def group_of(seed: int, outs: tuple[int, ...], **shape) -> list[Case]:
    """Sites that see the same tokens, under one global term."""
    cases = [random_case(seed + i, out=out, **shape) for i, out in enumerate(outs)]
    return [replace(case, x=cases[0].x, term=cases[0].term) for case in cases]


def inside_wider(rows: torch.Tensor) -> torch.Tensor:
    """The same values as a part of longer rows."""
    wide = torch.full((len(rows), rows.shape[1] + 7), torch.nan)
    wide[:, 3 : 3 + rows.shape[1]] = rows
    return wide[:, 3 : 3 + rows.shape[1]]


@pytest.mark.parametrize("name", ISAS)
@often
@given(
    tokens=st.sampled_from([1, 2, 5, 13, 16, 70]),
    experts=st.sampled_from([1, 3, 9, 20, 40]),
    rank=st.sampled_from([1, 4, 9, 16, 20]),
    width=st.sampled_from([2, 16, 37, 64, 600]),
    outs=st.sampled_from([(1,), (16, 70), (48, 16, 16), (5, 5, 5, 5)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    k=st.sampled_from([1, 2, 3]),
    standardised=st.booleans(),
    conditioned=st.booleans(),
    picked=st.booleans(),
    fused=st.booleans(),
    seed=st.integers(0, 999),
)
def test_sites_together_add_what_each_adds(
    name: str, tokens: int, outs: tuple[int, ...], conditioned: bool, picked: bool, fused: bool, seed: int, **shape
) -> None:
    """Into outputs of their own, or into parts of one, as those of a fused layer are."""
    assert extension is not None
    before = extension.isa()
    extension.use_isa(name)
    try:
        cases = group_of(seed, outs, tokens=tokens, queries=1 if conditioned else None, absent=1, **shape)
        sites = [NativeSite(case.bank, case.site, case.linear) for case in cases]
        index = torch.arange(tokens)[::2].contiguous() if picked else None
        ys = [case.y.clone() for case in cases]
        ys = list(torch.cat(ys, dim=1).split(outs, dim=1)) if fused else ys
        NativeGroup.of(sites).route(ys, cases[0].x, cases[0].term, None, index)
        for case, site, y in zip(cases, sites, ys, strict=True):
            x = case.x if index is None else case.x[index]
            decision = site.decide(x, min(case.linear.k, case.bank.A.shape[0]), case.term)
            expected = case.y.clone()
            expected[slice(None) if index is None else index] += apply_experts(x, decision, case.bank)
            torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    finally:
        extension.use_isa(before)


@pytest.mark.parametrize("name", ISAS)
@often
@given(
    runs=st.lists(st.sampled_from([1, 2, 15, 16, 17, 50, 64]), min_size=1, max_size=4),
    rank=st.sampled_from([1, 5, 8, 9, 16, 20, 33]),
    width=st.sampled_from([2, 16, 37, 64, 600]),
    out=st.sampled_from([1, 16, 70, 130]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    kept=st.sampled_from([1, 2, 3, 9]),
    strides=st.booleans(),
    picked=st.booleans(),
    seed=st.integers(0, 999),
)
def test_settled_experts_of_runs_of_tokens(
    name: str, runs: list[int], kept: int, strides: bool, picked: bool, seed: int, **shape
) -> None:
    """Tokens of a query have the same experts; some queries have fewer, and some none."""
    assert extension is not None
    before = extension.isa()
    extension.use_isa(name)
    try:
        case = random_case(seed, tokens=sum(runs), experts=6, **shape)
        chance = torch.Generator().manual_seed(seed)
        experts = torch.randint(0, 6, (len(runs), kept), generator=chance)
        weights = torch.rand(len(runs), kept, generator=chance) * (torch.rand(len(runs), kept, generator=chance) > 0.3)
        decision = Decision(*(part.repeat_interleave(torch.tensor(runs), 0) for part in (experts, weights)))
        index = torch.randperm(sum(runs), generator=chance) if picked else None
        x, y = (inside_wider(case.x), inside_wider(case.y)) if strides else (case.x, case.y.clone())
        NativeSite(case.bank, case.site, None).apply(y, x, decision, index)
        expected, rows = case.y.clone(), torch.arange(sum(runs)) if index is None else index
        expected[rows] += apply_experts(case.x[rows], decision, case.bank)
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
        without = (decision.weights == 0).all(dim=1)
        assert torch.equal(y[rows][without], case.y[rows][without]), "to the bit"
    finally:
        extension.use_isa(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_in_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        case = random_case(3, tokens=900, experts=6, rank=16, width=420, out=300)
        decision = Decision(torch.arange(3).repeat_interleave(300)[:, None], torch.ones(900, 1))
        y = case.y.clone()
        NativeSite(case.bank, case.site, None).apply(y, case.x, decision)
        torch.testing.assert_close(y, case.y + apply_experts(case.x, decision, case.bank), atol=1e-4, rtol=1e-4)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("tokens", [2, 40])
def test_a_broken_expert_without_weight_and_a_broken_token_stay_alone(tokens: int) -> None:
    case = random_case(4, tokens=tokens)
    case.bank.A[1], case.bank.B[1] = torch.inf, torch.nan
    decision = Decision(torch.tensor([[0, 1, 2]]).expand(tokens, 3), torch.tensor([[1.0, 0.0, 0.5]]).expand(tokens, 3))
    case.x[1, 3] = torch.nan
    y = case.y.clone()
    NativeSite(case.bank, case.site, None).apply(y, case.x, decision)
    assert y[1].isnan().all()
    assert y[[i for i in range(tokens) if i != 1]].isfinite().all()


def test_sites_of_other_widths_are_refused() -> None:
    cases = [random_case(0, width=20), random_case(0, width=16)]
    sites = [NativeSite(case.bank, case.site, case.linear) for case in cases]
    group = NativeGroup(tuple(site._site for site in sites), 20)
    with pytest.raises(ValueError, match="different widths"):
        group.route([case.y for case in cases], cases[0].x, None, None)


def test_a_change_of_memory_is_seen() -> None:
    assert extension is not None
    x = torch.arange(5.0)
    number = extension.note(x.data_ptr(), 20)
    assert extension.same(number, x.data_ptr(), 20)
    x[4] = 0
    assert not extension.same(number, x.data_ptr(), 20)
    x[4] = 4
    assert extension.same(number, x.data_ptr(), 20)
    extension.note(x.data_ptr(), 20)
    assert not extension.same(number, x.data_ptr(), 20), "another note was made since"
