"""The Triton kernel against the reference: in Triton's interpreter, or with `TRITON_INTERPRET=0` on a GPU."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from glider.errors import KernelError
from glider.inference.spec import load
from glider.layers.bank import Bank
from glider.layers.context import Batch, RoutingContext
from glider.layers.kernels import gpu
from glider.layers.kernels.gpu import Blocks
from glider.layers.kernels.gpu_site import TritonSite
from glider.layers.kernels.reference import apply_experts
from glider.layers.routed_linear import RoutedLinear
from glider.layers.routed_site import RoutedSite
from glider.layers.trace import Trace
from glider.routing.base import Decision, Site
from glider.routing.linear import LinearTopK
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.select import TopK, TopP

from .cases import Case, random_case

pytestmark = pytest.mark.skipif(gpu.why_absent() is not None, reason=f"no triton kernel: {gpu.why_absent()}")
DEVICE = torch.device("cpu" if gpu.interpreted() else "cuda")
NAMES = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # and what rounding y to them may cost


def added(y: torch.Tensor, x: torch.Tensor, decision: Decision, bank: Bank, dense: bool = False) -> torch.Tensor:
    there = y.to(DEVICE, copy=True)
    bank = Bank(bank.A.to(DEVICE), bank.B.to(DEVICE), bank.scaling.to(DEVICE))
    x = x if x.device == DEVICE else x.to(DEVICE)  # a view stays one where it can
    gpu.add_experts(there, x, Decision(decision.experts.to(DEVICE), decision.weights.to(DEVICE)), bank, dense=dense)
    return there.cpu()


def wanted(y: torch.Tensor, x: torch.Tensor, decision: Decision, bank: Bank) -> torch.Tensor:
    wide = Bank(bank.A.float(), bank.B.float(), bank.scaling)
    return y.float() + apply_experts(x.float(), decision, wide)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    tokens=st.sampled_from([0, 1, 2, 7, 16, 17, 40]),
    experts=st.integers(1, 7),
    rank=st.sampled_from([1, 4, 16, 17, 70]),
    width=st.sampled_from([1, 3, 33, 64, 100]),
    out=st.sampled_from([1, 5, 64, 80]),
    select=st.sampled_from([TopK(1), TopK(2), TopK(9), TopK(2, renormalise=False), TopP(0.4), TopP(0.9)]),
    dtype=st.sampled_from(list(NAMES)),
    stored=st.sampled_from(list(NAMES)),
    seed=st.integers(0, 999),
    dense=st.booleans(),
)
def test_the_kernel_adds_what_the_reference_computes(
    tokens: int,
    experts: int,
    rank: int,
    width: int,
    out: int,
    select: TopK,
    dtype: torch.dtype,
    stored: torch.dtype,
    seed: int,
    dense: bool,
) -> None:
    case = random_case(seed, tokens=tokens, experts=experts, rank=rank, width=width, out=out, dtype=stored, absent=1)
    decision, x, y = select(case.scores()), case.x.to(dtype), case.y.to(dtype)
    got = added(y, x, decision, case.bank, dense)
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.float(), wanted(y, x, decision, case.bank), atol=NAMES[dtype], rtol=NAMES[dtype], check_dtype=False
    )


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    tokens=st.sampled_from([0, 1, 2, 7, 24]),
    experts=st.sampled_from([1, 2, 5, 16, 37]),
    width=st.sampled_from([1, 3, 33, 100]),
    k=st.sampled_from([1, 2, 9]),
    renormalise=st.booleans(),
    standardised=st.booleans(),
    absolute=st.booleans(),
    queries=st.sampled_from([None, 1, 2, 4]),
    mapped=st.booleans(),
    absent=st.integers(0, 3),
    dtype=st.sampled_from(list(NAMES)),
    seed=st.integers(0, 999),
)
def test_the_kernel_decides_as_the_router_does(
    tokens: int,
    experts: int,
    width: int,
    k: int,
    renormalise: bool,
    standardised: bool,
    absolute: bool,
    queries: int | None,
    mapped: bool,
    absent: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """The same experts, in the same order, and their weights; near-ties apart."""
    case = random_case(
        seed,
        tokens=tokens,
        experts=experts,
        width=width,
        k=k,
        renormalise=renormalise,
        standardised=standardised,
        absolute=absolute,
        absent=absent,
    )
    x = case.x.to(dtype)
    chance = torch.Generator().manual_seed(seed)
    term = None if queries is None else 3 * torch.randn(queries, experts, generator=chance)
    query_of = None if term is None else torch.arange(tokens) * len(term) // max(1, tokens)
    if query_of is not None and mapped:
        query_of = query_of.flip(0)
    wanted_scores = replace(case, x=x.float()).scores()
    if term is not None and query_of is not None:
        wanted_scores = wanted_scores + term[query_of]
    if term is not None and not mapped and tokens % len(term):
        return  # tokens that do not divide among the queries are refused before
    site, linear = moved(case)
    bound = TritonSite(bank_there(case.bank), site, linear)
    got = bound.decide(
        x.to(DEVICE),
        bound.per_token,
        None if term is None else term.to(DEVICE),
        query_of.to(DEVICE) if mapped and query_of is not None else None,
    )
    exact = case.linear.k, case.linear.renormalise
    right = TopK(*exact)(wanted_scores)
    torch.testing.assert_close(got.weights.cpu(), right.weights, atol=3e-5, rtol=3e-4)
    chances = wanted_scores.softmax(dim=-1)
    picked = chances.gather(1, got.experts.cpu())
    torch.testing.assert_close(picked, chances.gather(1, right.experts), atol=3e-5, rtol=3e-4)
    assert all(len(set(row)) == len(row) for row in got.experts.tolist())


def moved(case: Case) -> tuple[Site, LinearTopK]:
    """Site and description of a case on the device."""
    scores = case.linear.scores
    rows = None if scores.rows is None else scores.rows.to(DEVICE)
    return case.site.to(DEVICE), replace(case.linear, scores=replace(scores, rows=rows))


def bank_there(bank: Bank) -> Bank:
    return Bank(bank.A.to(DEVICE), bank.B.to(DEVICE), bank.scaling.to(DEVICE))


def test_gates_in_parts_of_16_bits_are_as_exact_as_float32() -> None:
    case = random_case(7, tokens=3, experts=9, width=500)
    site, linear = moved(case)
    bound = TritonSite(bank_there(case.bank), site, linear)
    for dtype in (torch.bfloat16, torch.float16):
        parts = bound._split(dtype).double().view(3, 9, 500).sum(dim=0).cpu()
        assert (parts - case.linear.scores.rows.double()).abs().max() < 3e-7 * 4
    assert len(bound._split(torch.float32)) == 9


def test_a_query_that_does_not_exist_shows_in_every_weight() -> None:
    case = random_case(8, tokens=4)
    site, linear = moved(case)
    bound = TritonSite(bank_there(case.bank), site, linear)
    term, query_of = torch.zeros(2, 5, device=DEVICE), torch.tensor([0, 1, 2, -1], device=DEVICE)
    got = bound.decide(case.x.to(DEVICE), 2, term, query_of)
    assert got.weights.isnan().any(dim=-1).tolist() == [False, False, True, True]
    assert int(got.experts.min()) >= 0 and int(got.experts.max()) < 5


@pytest.mark.parametrize("renormalise", [False, True])
def test_tokens_without_an_expert_in_reach_have_no_weight(renormalise: bool) -> None:
    case = random_case(8, tokens=4, absent=2, renormalise=renormalise)
    site, linear = moved(case)
    term = torch.zeros(2, 5)
    term[1, ~case.site.absent] = -torch.inf
    got = TritonSite(bank_there(case.bank), site, linear).decide(case.x.to(DEVICE), 2, term.to(DEVICE))
    assert got.weights.sum(dim=-1).gt(0).tolist() == [True, True, False, False]
    assert all(len(set(row)) == 2 for row in got.experts.tolist())


def test_products_with_all_experts_are_left_out_where_one_is_not_finite() -> None:
    case = random_case(9, tokens=40)
    site, linear = moved(case)
    assert TritonSite(bank_there(case.bank), site, linear)._dense
    case.bank.B[2] = torch.inf
    assert not TritonSite(bank_there(case.bank), site, linear)._dense


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("tokens", [3, 18])
def test_an_expert_named_twice_counts_twice(tokens: int, dense: bool) -> None:
    case = random_case(1, tokens=tokens)
    experts, weights = torch.tensor([[1, 1], [2, 2], [0, 1]]), torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, -1.0]])
    decision = Decision(experts.repeat(tokens // 3, 1), weights.repeat(tokens // 3, 1))
    got = added(case.y, case.x, decision, case.bank, dense)
    torch.testing.assert_close(got, wanted(case.y, case.x, decision, case.bank))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("tokens", [2, 40])
def test_a_broken_token_stays_alone(tokens: int, dense: bool) -> None:
    case = random_case(2, tokens=tokens)
    decision = case.decision()
    clean = added(case.y, case.x, decision, case.bank, dense)
    case.x[1] = torch.nan
    got = added(case.y, case.x, decision, case.bank, dense)
    others = [i for i in range(tokens) if i != 1]
    assert got[1].isnan().all()
    assert torch.equal(got[others], clean[others])


@pytest.mark.parametrize("tokens", [2, 40])
def test_what_has_no_weight_cannot_break_a_token(tokens: int) -> None:
    """Neither an expert that is not finite, nor a token that is not and keeps nobody."""
    case = random_case(3, tokens=tokens)
    case.bank.A[1], case.bank.B[2] = torch.inf, torch.nan
    weights = torch.tensor([[1.0, 0.0, 0.0]]).repeat(tokens, 1)
    case.x[-1], weights[-1] = torch.nan, 0
    got = added(case.y, case.x, Decision(torch.tensor([[0, 1, 2]]).expand(tokens, 3), weights), case.bank)
    assert torch.isfinite(got).all()
    assert torch.equal(got[-1], case.y[-1])
    assert not torch.equal(got[0], case.y[0])


@pytest.mark.parametrize("tokens", [5, 40])
def test_x_and_y_may_be_views(tokens: int) -> None:
    case = random_case(4, tokens=tokens, width=20)
    x, y = torch.randn(tokens, 40, device=DEVICE)[:, ::2], torch.randn(18, tokens, device=DEVICE)
    decision, before = case.decision(), y.T.clone()
    bank = Bank(case.bank.A.to(DEVICE), case.bank.B.to(DEVICE), case.bank.scaling.to(DEVICE))
    gpu.add_experts(y.T, x, Decision(decision.experts.to(DEVICE), decision.weights.to(DEVICE)), bank)
    torch.testing.assert_close(y.T.cpu(), wanted(before.cpu(), x.cpu(), decision, case.bank), atol=2e-5, rtol=2e-5)


def test_tokens_are_taken_in_parts_where_outputs_need_room(monkeypatch: pytest.MonkeyPatch) -> None:
    case, parts, by_block = random_case(5, tokens=40), [], gpu._by_block
    decision = case.decision()
    whole = added(case.y, case.x, decision, case.bank)
    assert torch.equal(added(case.y, case.x, decision, case.bank), whole)  # the same bits every time
    monkeypatch.setattr(gpu, "_ROOM", 2 * 18 * 17)  # 17 tokens
    monkeypatch.setattr(gpu, "_by_block", lambda y, *more: parts.append(len(y)) or by_block(y, *more))
    torch.testing.assert_close(added(case.y, case.x, decision, case.bank), whole)
    assert parts == [17, 17, 6]


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4), st.integers(1, 8), st.integers(0, 99))
def test_blocks_hold_every_pair_with_weight_once(tokens: int, count: int, kept: int, size: int, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    experts = torch.randint(count, (tokens, kept), generator=chance)
    weights = torch.rand(tokens, kept, generator=chance) * torch.randint(2, (tokens, kept), generator=chance)
    blocks = Blocks.of(experts, weights, torch.ones(count), size)
    held = []
    for block, owner in enumerate(blocks.owners.tolist()):
        if owner == count:
            continue
        start = int(blocks.starts[owner] + (block - blocks.firsts[owner]) * size)
        pairs = blocks.order[start : min(start + size, int(blocks.starts[owner + 1]))]
        assert len(pairs) and (experts.flatten()[pairs] == owner).all()
        held += pairs.tolist()
    assert sorted(held) == weights.flatten().nonzero().flatten().tolist()


def layer_of(kernel: str | None, dtype: torch.dtype = torch.float32) -> RoutedLinear:
    case = random_case(0)
    torch.manual_seed(0)
    base = torch.nn.Linear(20, 18)
    layer = RoutedLinear.over(base, RoutedSite(case.site, case.bank, Phatgoose(), kernel), RoutingContext())
    return layer.to(DEVICE, dtype)


@pytest.mark.parametrize("shape", [(1, 1, 20), (2, 20, 20), (4, 20), (20,)])
def test_a_layer_runs_it_and_the_trace_says_so(shape: tuple[int, ...]) -> None:
    x, outputs = torch.randn(shape, device=DEVICE), []
    for kernel in ("triton", "reference"):
        layer, trace = layer_of(kernel), Trace(list("abcde"), None, torch.ones(2, 20, dtype=torch.bool))
        with torch.inference_mode(), layer.context.use(Batch.of(None, None, trace)):
            outputs.append(layer(x))
        assert trace.kernels == {kernel: 1}
    torch.testing.assert_close(outputs[0], outputs[1], atol=2e-5, rtol=2e-5)


@pytest.mark.slow
def test_a_model_answers_as_with_the_torch_kernel(make_pool, llama_directory: Path) -> None:
    """A prompt of many tokens, then one token at a time."""
    pool, answers = make_pool(llama_directory, 3), []
    for kernel in ("triton", "torch"):
        model = load(str(llama_directory), pool.path, router="phatgoose", kernel=kernel, device=DEVICE)
        [answer], trace = model.generate_traced(["what is to be done?"], max_new_tokens=3)
        assert set(trace.kernels) == {kernel}
        answers.append(answer.token_ids)
    assert answers[0] == answers[1]


def test_a_call_that_it_cannot_run_is_an_error_where_it_must() -> None:
    layer, x = layer_of("triton"), torch.randn(3, 20, device=DEVICE)
    with pytest.raises(KernelError, match="needs gradients"):
        layer(x)
    with torch.inference_mode(), pytest.raises(KernelError, match="float64"):
        layer.double()(x.double())


def test_tensors_without_an_address_are_refused() -> None:
    bank = random_case(0).bank
    with FakeTensorMode() as fake:
        assert "FakeTensor, which has no address" in str(gpu.refusal(fake.from_tensor(torch.randn(3, 20)), bank))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "hip:gfx942"])
def test_its_programs_compile_for_a_gpu_that_is_not_here(target: str, tmp_path: Path) -> None:
    """To machine code, for the strides and the types of a call in practice. That says nothing of speed."""
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "compile_for_gpu.py"), target],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "42 compiled\n"
