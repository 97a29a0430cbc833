"""The native kernel on bfloat16 inputs and outputs: decides as in float32, and rounds outputs once for each pair."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.layers.context import Segment
from glider.layers.kernels import native
from glider.layers.kernels.native import NativeGroup, NativeSite
from glider.layers.kernels.reference import apply_experts
from glider.layers.routed_site import RoutedSite
from glider.routing.base import Decision
from glider.routing.methods.phatgoose import Phatgoose

from .cases import Case, random_case

extension = native.extension()
pytestmark = pytest.mark.skipif(extension is None, reason=f"no native kernel: {native.why_absent()}")
ISAS = extension.isas() if extension is not None else []
often = settings(deadline=None, derandomize=True, max_examples=60)
STEP = 2.0**-8  # a bfloat16 is at most this, relative to itself, from what was rounded


@contextmanager
def using(isa: str) -> Iterator[None]:
    assert extension is not None
    before = extension.isa()
    extension.use_isa(isa)
    try:
        yield
    finally:
        extension.use_isa(before)


def halved(case: Case) -> Case:
    """Inputs and outputs in bfloat16."""
    return replace(case, x=case.x.bfloat16(), y=case.y.bfloat16())


def assert_rounded(got: torch.Tensor, before: torch.Tensor, decision: Decision, case: Case, x: torch.Tensor) -> None:
    """`got` is `before` with the experts' outputs added one after the other, each sum rounded to bfloat16."""
    assert got.dtype is torch.bfloat16
    exact, most = before.float(), before.float().abs()
    for k in range(decision.experts.shape[1]):
        pair = Decision(decision.experts[:, k : k + 1], decision.weights[:, k : k + 1])
        part = apply_experts(x.float(), pair, case.bank)
        exact, most = exact + part, most + part.abs()
    kept = int((decision.weights > 0).sum(dim=1).max()) if len(decision.weights) else 0
    assert ((got.float() - exact).abs() <= (kept + 1) * STEP * most + 1e-5).all()


@pytest.mark.parametrize("name", ISAS)
@often
@given(
    tokens=st.sampled_from([1, 2, 5, 16, 70, 200]),
    experts=st.sampled_from([1, 2, 3, 9, 40, 129]),
    rank=st.sampled_from([1, 4, 9, 16, 20, 40, 130]),
    width=st.sampled_from([2, 16, 37, 64, 600]),
    out=st.sampled_from([1, 16, 70]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    k=st.sampled_from([1, 2, 3]),
    standardised=st.booleans(),
    absolute=st.booleans(),
    conditioned=st.booleans(),
    absent=st.integers(0, 3),
    shortlist=st.booleans(),
    seed=st.integers(0, 999),
)
def test_decisions_are_those_of_float32(name: str, conditioned: bool, shortlist: bool, **given) -> None:
    case = halved(random_case(queries=1 if conditioned else None, **given))
    with using(name):
        site = NativeSite(case.bank, case.site, case.linear, shortlist)
        per_token = min(case.linear.k, len(case.site.absent))
        got, wide = (site.decide(x, per_token, case.term) for x in (case.x, case.x.float()))
        torch.testing.assert_close(got.weights, wide.weights, atol=1e-5, rtol=1e-4)
        scores = replace(case, x=case.x.float()).scores()
        own, best = (scores.gather(1, d.experts).masked_fill(d.weights <= 0, 0.0) for d in (got, wide))
        torch.testing.assert_close(own, best, atol=1e-5, rtol=1e-5)
        y = case.y.clone()
        site.route(y, case.x, case.term, None)
        assert_rounded(y, case.y, got, case, case.x)


@pytest.mark.parametrize("name", ISAS)
@often
@given(
    tokens=st.sampled_from([1, 2, 5, 13, 16, 70]),
    rank=st.sampled_from([1, 4, 9, 16]),
    width=st.sampled_from([2, 16, 37, 600]),
    outs=st.sampled_from([(1,), (16, 70), (48, 16, 16), (5, 5, 5, 5)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    picked=st.booleans(),
    seed=st.integers(0, 999),
)
def test_sites_together_into_parts_of_one_output(
    name: str, tokens: int, outs: tuple[int, ...], picked: bool, seed: int, **shape
) -> None:
    """As the sites of a fused layer have them, for all rows or some."""
    cases = [halved(random_case(seed + i, out=out, tokens=tokens, absent=1, **shape)) for i, out in enumerate(outs)]
    cases = [replace(case, x=cases[0].x) for case in cases]
    with using(name):
        sites = [NativeSite(case.bank, case.site, case.linear) for case in cases]
        index = torch.arange(tokens)[::2].contiguous() if picked else None
        rows = slice(None) if index is None else index
        whole = torch.cat([case.y for case in cases], dim=1)
        ys = list(whole.split(outs, dim=1))
        NativeGroup.of(sites).route(ys, cases[0].x, None, None, index)
        for case, site, y in zip(cases, sites, ys, strict=True):
            x = case.x[rows]
            assert_rounded(y[rows], case.y[rows], site.decide(x, 2), case, x)
            if index is not None:
                assert torch.equal(y[1::2], case.y[1::2]), "to the bit"


@pytest.mark.parametrize("name", ISAS)
@often
@given(
    runs=st.lists(st.sampled_from([1, 2, 15, 16, 17, 50, 64]), min_size=1, max_size=4),
    rank=st.sampled_from([1, 5, 8, 16, 33]),
    width=st.sampled_from([2, 37, 64, 600]),
    out=st.sampled_from([1, 16, 70, 130]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    kept=st.sampled_from([1, 2, 3, 9]),
    seed=st.integers(0, 999),
)
def test_settled_experts_of_runs_of_tokens(name: str, runs: list[int], kept: int, seed: int, **shape) -> None:
    case = halved(random_case(seed, tokens=sum(runs), experts=6, **shape))
    chance = torch.Generator().manual_seed(seed)
    experts = torch.randint(0, 6, (len(runs), kept), generator=chance)
    weights = torch.rand(len(runs), kept, generator=chance) * (torch.rand(len(runs), kept, generator=chance) > 0.3)
    decision = Decision(*(part.repeat_interleave(torch.tensor(runs), 0) for part in (experts, weights)))
    with using(name):
        y = case.y.clone()
        NativeSite(case.bank, case.site, None).apply(y, case.x, decision)
    assert_rounded(y, case.y, decision, case, case.x)
    without = (decision.weights == 0).all(dim=1)
    assert torch.equal(y[without], case.y[without]), "to the bit"


@pytest.mark.parametrize("name", ISAS)
def test_outputs_are_rounded_to_the_nearest_and_ties_to_even(name: str) -> None:
    """An expert that adds what lies half way, or beyond the largest, to outputs of every sign and size."""
    values = torch.tensor([1.0, 1.0078125, -1.0, -1.0078125, 3.0e38, -3.0e38, 0.0, 1.5] * 8).bfloat16()
    added = torch.tensor([2.0**-8, 2.0**-8, -(2.0**-8), -(2.0**-8), 3.0e38, -3.0e38, 2.0**-130, 2.0**-9] * 8)
    for count in (len(values), 5):  # whole vectors, and what is left of one
        case = halved(random_case(0, tokens=1, experts=1, rank=1, width=16, out=count))
        case.bank.A[:], case.bank.scaling[:], case.x[:] = 1 / 16, 1.0, 1.0
        case.bank.B[0, :, 0] = added[:count]
        y = values[None, :count].clone()
        with using(name):
            NativeSite(case.bank, case.site, None).apply(
                y, case.x, Decision(torch.zeros(1, 1).long(), torch.ones(1, 1))
            )
        assert torch.equal(y[0], (values[:count].float() + added[:count]).bfloat16())


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_token_stays_alone(broken: float, name: str) -> None:
    case = halved(random_case(10, tokens=20, experts=60, out=70))
    with using(name):
        site = NativeSite(case.bank, case.site, case.linear)
        clean, got = case.y.clone(), case.y.clone()
        site.route(clean, case.x, None, None)
        case.x[3, 5] = broken
        site.route(got, case.x, None, None)
    assert got[3].isnan().all()
    others = [i for i in range(20) if i != 3]
    assert torch.equal(got[others], clean[others])


@pytest.mark.parametrize("name", ISAS)
def test_products_of_pytorch_beside_it_are_what_they_were(name: str) -> None:
    """Both may use the processor's tiles, which each gives a shape of its own."""
    case = halved(random_case(4, tokens=200, experts=3, rank=16, width=96, out=70, dtype=torch.bfloat16))
    layer = torch.nn.Linear(96, 64, dtype=torch.bfloat16)
    with using(name), torch.inference_mode():
        site, alone, outputs = NativeSite(case.bank, case.site, case.linear), layer(case.x), []
        for _ in range(3):
            y = case.y.clone()
            site.route(y, case.x, None, None)
            outputs.append(y)
            assert torch.equal(layer(case.x), alone)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 8, 300])
def test_threads_change_nothing(tokens: int, threads: int) -> None:
    case = halved(random_case(7, tokens=tokens, experts=1100, rank=8, width=420, out=300, queries=1, absent=3))
    site, alone, together = NativeSite(case.bank, case.site, case.linear), case.y.clone(), case.y.clone()
    site.route(alone, case.x, case.term, None)
    torch.set_num_threads(threads)
    try:
        site.route(together, case.x, case.term, None)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(together, alone, atol=0.02, rtol=0.02)


def test_a_layer_of_bfloat16_takes_the_native_kernel_and_no_other_mixture() -> None:
    """Inputs and outputs of one dtype; half precision, and outputs of another dtype, are PyTorch's."""
    case = halved(random_case(5, tokens=9, dtype=torch.bfloat16))
    routed = RoutedSite(case.site, case.bank, Phatgoose()).eval()
    changes, kernels = [], []
    mixtures = [(case.x, case.y), (case.x, case.y.float()), (case.x.half(), case.y.half())]
    with torch.inference_mode():
        for x, y in mixtures:
            routed.add(y.clone(), x, Segment(0), lambda decision, kernel: kernels.append(kernel))
            changes.append(routed.add(y.clone(), x, Segment(0)).float() - y.float())
    assert kernels == ["native", "torch", "torch"]
    for change in changes[1:]:
        torch.testing.assert_close(change, changes[0], atol=0.05, rtol=0.05)


def test_the_routers_decide_in_pytorch_as_the_kernel_does() -> None:
    """On bfloat16 values that float32 holds exactly, so that only ties could part them."""
    case = halved(random_case(6, tokens=200, experts=40, width=64))
    assert case.linear.scores.rows is not None
    site = replace(case.site, tensors={"gates": case.linear.scores.rows})
    decision = Phatgoose().route(site, case.x, None)
    linear = Phatgoose().linear(site)
    assert linear is not None
    got = NativeSite(case.bank, site, linear).decide(case.x, 2)
    torch.testing.assert_close(got.weights, decision.weights.float(), atol=1e-5, rtol=1e-4)
    assert torch.equal(got.experts, decision.experts)
