"""Sites that are computed together on a GPU, by a table of queries, against each one by the reference."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.errors import KernelError
from glider.layers.bank import Bank
from glider.layers.kernels import gpu
from glider.layers.kernels.gpu_group import GroupPart, TritonGroup
from glider.layers.kernels.gpu_site import QueryTable
from glider.layers.kernels.reference import apply_experts
from glider.routing.base import Decision

from .cases import Case, random_case
from .test_gpu import DEVICE, bank_there

pytestmark = pytest.mark.skipif(gpu.why_absent() is not None, reason=f"no triton kernel: {gpu.why_absent()}")
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 3e-2}


def cases_of(seed: int, outs: tuple[int, ...], **shape: object) -> list[Case]:
    """Sites with one input, each with its own gates, experts and outputs."""
    cases = [random_case(seed + i, out=out, **shape) for i, out in enumerate(outs)]
    return [replace(case, x=cases[0].x) for case in cases]


def group_of(cases: list[Case], outs: tuple[int, ...], kept: int) -> tuple[TritonGroup, list[GroupPart]]:
    parts, start = [], 0
    for case, out in zip(cases, outs, strict=True):
        scores = case.linear.scores
        rows = None if scores.rows is None else scores.rows.to(DEVICE)
        linear = replace(case.linear, scores=replace(scores, rows=rows))
        parts.append(GroupPart(start, start + out, bank_there(case.bank), case.site.to(DEVICE), linear))
        start += out
    return TritonGroup(parts, kept), parts


def table_of(seed: int, experts: int, kept: int, dtype: torch.dtype = torch.float32) -> QueryTable:
    """A row of nobody, one of settled experts, and two that are routed."""
    chance = torch.Generator().manual_seed(seed)
    term = torch.randn(4, experts, generator=chance)
    settled = torch.stack([torch.randperm(experts, generator=chance)[:kept] for _ in range(4)])
    shares = torch.rand(4, settled.shape[1], generator=chance)
    shares[0] = 0
    missing = (0, kept - settled.shape[1])
    settled, shares = torch.nn.functional.pad(settled, missing), torch.nn.functional.pad(shares, missing)
    routed = torch.tensor([0, 0, 1, 1])
    return QueryTable(term.to(DEVICE), routed.to(DEVICE), settled.to(DEVICE), shares.to(DEVICE))


def expected(case: Case, x: torch.Tensor, table: QueryTable, row_of: torch.Tensor) -> torch.Tensor:
    """What a site adds for its tokens, in float32."""
    b = case.bank.B.float().nan_to_num(posinf=0)  # what no token uses
    wide = Bank(case.bank.A.float(), b, case.bank.scaling)
    scores = replace(case, x=x.float()).scores() + table.term.cpu()[row_of]
    chances = scores.softmax(dim=-1)
    weights, experts = chances.topk(min(case.linear.k, chances.shape[1]), dim=-1)
    if case.linear.renormalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
    by_token = apply_experts(x.float(), Decision(experts, weights), wide)
    settled = Decision(table.experts.cpu()[row_of], table.weights.cpu()[row_of])
    by_row = apply_experts(x.float(), settled, wide)
    return torch.where(table.routed.cpu()[row_of].bool()[:, None], by_token, by_row)


@settings(deadline=None, derandomize=True, max_examples=8)
@given(
    tokens=st.sampled_from([1, 3, 16, 17, 40]),
    experts=st.sampled_from([1, 3, 9]),
    rank=st.sampled_from([2, 16, 17]),
    outs=st.sampled_from([(64, 128, 64), (64, 5), (70,), (128, 64)]),
    standardised=st.booleans(),
    kept=st.sampled_from([1, 3]),
    dtype=st.sampled_from(list(TOLERANCE)),
    spoilt=st.booleans(),
    seed=st.integers(0, 999),
)
def test_a_group_adds_what_its_sites_add(
    tokens: int,
    experts: int,
    rank: int,
    outs: tuple[int, ...],
    standardised: bool,
    kept: int,
    dtype: torch.dtype,
    spoilt: bool,
    seed: int,
) -> None:
    cases = cases_of(
        seed, outs, tokens=tokens, experts=experts, rank=rank, width=64, standardised=standardised, dtype=dtype, k=2
    )
    if spoilt:  # a factor that no token uses keeps to itself
        cases[0].bank.B[experts - 1] = torch.inf
        cases = [replace(case, site=replace(case.site, absent=_last(experts))) for case in cases]
        if experts == 1:
            return
    group, parts = group_of(cases, outs, kept)
    assert TritonGroup.joins(parts)
    table = table_of(seed, experts, group.per_token)
    if spoilt:
        table.weights[table.experts == experts - 1] = 0
    row_of = torch.arange(tokens) % 4
    x = cases[0].x.to(dtype)
    whole = torch.zeros(tokens, sum(outs) + 64, dtype=dtype, device=DEVICE)
    y = whole[:, : sum(outs)]  # rows of longer ones
    group.add(y, x.to(DEVICE), table, row_of.to(DEVICE))
    assert not whole[:, sum(outs) :].any()
    start = 0
    for case, out in zip(cases, outs, strict=True):
        right = expected(case, x, table, row_of)
        got = y[:, start : start + out].float().cpu()
        torch.testing.assert_close(got, right, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        assert not got[row_of == 0].any()
        start += out


def _last(experts: int) -> torch.Tensor:
    absent = torch.zeros(experts, dtype=torch.bool)
    absent[-1] = True
    return absent


def test_sites_of_other_widths_or_routers_are_no_group() -> None:
    cases = cases_of(5, (64, 64), tokens=2, experts=3, width=64)
    _, parts = group_of(cases, (64, 64), 1)
    assert TritonGroup.joins(parts)
    assert not TritonGroup.joins([parts[0], replace(parts[1], start=65, stop=129)])
    assert not TritonGroup.joins([replace(parts[0], stop=63), replace(parts[1], start=63)])
    assert not TritonGroup.joins([parts[0], replace(parts[1], linear=replace(parts[1].linear, k=1))])


def test_a_call_that_the_kernel_cannot_run_is_refused() -> None:
    cases = cases_of(6, (64,), tokens=2, experts=3, width=64)
    group, _ = group_of(cases, (64,), 1)
    x, row_of = torch.zeros(2, 64, dtype=torch.float64, device=DEVICE), torch.zeros(2, dtype=torch.long, device=DEVICE)
    with pytest.raises(KernelError, match="float64"):
        group.add(torch.zeros(2, 64, dtype=torch.float64, device=DEVICE), x, table_of(0, 3, 2), row_of)
