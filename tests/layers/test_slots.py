"""The general form of a decision: slots that mix tokens, and routers that say where they are right."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from glider.errors import BatchingError, KernelError, QueryError
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.model import RoutedModel
from glider.inference.spec import ModelSpec, load
from glider.layers.bank import Bank
from glider.layers.kernels.grouped import add_slots
from glider.layers.kernels.reference import apply_experts, apply_slots
from glider.routing.base import Decision, Site, SlotDecision, Support
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.select import TopK
from glider.testing import check_router


@dataclass(frozen=True)
class AsSlots(Phatgoose):
    """PHATGOOSE's decisions in the general form."""

    def route(self, site: Site, x: torch.Tensor, term: torch.Tensor | None) -> SlotDecision:  # pyright: ignore
        return super().route(site, x, term).slots


@dataclass(frozen=True)
class Soft(Phatgoose):
    """Soft MoE (arXiv 2308.00951): one slot an expert, each a mixture of all tokens of the call."""

    support: ClassVar[Support] = Support(cache=False, packed=False, chunked=False, mixed=False)

    def route(self, site: Site, x: torch.Tensor, term: torch.Tensor | None) -> SlotDecision:  # pyright: ignore
        scores = self.local_score().scores(x, site)  # (T, E)
        combine = scores.softmax(dim=1)
        dispatch = scores.masked_fill(site.absent, 0.0).softmax(dim=0).T.masked_fill(site.absent[:, None], 0.0)
        return SlotDecision(torch.arange(scores.shape[1]), dispatch, combine, scores)


@pytest.fixture
def pool(base_directory: Path, make_pool, grow_pool) -> Pool:
    pool = make_pool(base_directory, 2)
    return grow_pool(pool, base_directory, "half", seed=7, rank=2, alpha=8.0, sites=pool.sites[::2])


def test_a_decision_and_its_slots_are_the_same(base_directory: Path, pool: Pool) -> None:
    check_router(AsSlots(), pool)
    prompts = ["hello there", "sort 3 1 2"]
    base = load_base(str(base_directory))
    answers, usages = [], []
    for router in (Phatgoose(), AsSlots()):
        model = ModelSpec(router=router).over(base, pool)
        traced, trace = model.generate_traced(prompts, max_new_tokens=4)
        answers.append([answer.token_ids for answer in traced])
        usages.append(trace.usage(0))
        model.detach()
    assert answers[0] == answers[1]
    assert usages[0] == pytest.approx(usages[1], abs=1e-5)


@pytest.mark.parametrize("kernel", ["reference", "torch"])
def test_the_kernels_mix_as_the_formula_says(kernel: str) -> None:
    torch.manual_seed(0)
    count, rank, width, out, tokens, slots = 3, 2, 6, 5, 4, 5
    bank = Bank(torch.randn(count, rank, width), torch.randn(count, out, rank), torch.tensor([1.0, 0.5, 2.0]))
    experts = torch.tensor([2, 0, 2, 1, 0])
    decision = SlotDecision(experts, torch.randn(slots, tokens), torch.randn(tokens, slots))
    x = torch.randn(tokens, width)
    expected = torch.zeros(tokens, out)
    for token in range(tokens):
        for slot, expert in enumerate(experts.tolist()):
            mixed = (decision.dispatch[slot][:, None] * x).sum(dim=0)
            output = bank.scaling[expert] * bank.B[expert] @ (bank.A[expert] @ mixed)
            expected[token] += decision.combine[token, slot] * output
    apply = apply_slots if kernel == "reference" else add_slots
    torch.testing.assert_close(apply(x, decision, bank), expected, atol=1e-4, rtol=1e-4)
    plain = Decision(torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2]]), torch.rand(tokens, 2))
    torch.testing.assert_close(apply(x, plain.slots, bank), apply_experts(x, plain, bank), atol=1e-5, rtol=1e-5)
    dense = torch.zeros(tokens, count).scatter(1, plain.experts, plain.weights)
    torch.testing.assert_close(plain.slots.token_weights(count), dense)


def test_a_router_that_mixes_tokens_is_refused_where_it_is_not_right(base_directory: Path, pool: Pool) -> None:
    model = load(str(base_directory), pool.path, router=Soft())
    check_router(Soft(), pool)
    [answer] = model.generate(["hello there"], max_new_tokens=3, use_cache=False)
    assert len(answer.token_ids) == 3
    with pytest.raises(QueryError, match="one query at a time"):
        model.generate(["a", "b"], use_cache=False)
    with pytest.raises(QueryError, match="no cache of keys and values"):
        model.generate(["a"])
    with pytest.raises(QueryError, match="decides a prompt and its answer apart"):
        model.score("a", ["b", "c"])


def test_packed_passes_are_not_for_it(llama_directory: Path, make_pool) -> None:
    model = load(str(llama_directory), make_pool(llama_directory, 2).path, router=Soft())
    with pytest.raises(QueryError, match="no cache"):
        model.generate_batch(["a", "b"], max_new_tokens=2)
    with pytest.raises(QueryError, match="no cache"):
        list(model.stream("a", max_new_tokens=2))


@pytest.mark.parametrize("kernel", ["native", "triton"])
def test_kernels_that_cannot_mix_say_so(llama_directory: Path, make_pool, kernel: str) -> None:
    pool = make_pool(llama_directory, 2)
    try:
        model = load(str(llama_directory), pool.path, router=AsSlots(TopK(1)), kernel=kernel)
    except KernelError:
        pytest.skip(f"no {kernel} kernel here")
    with pytest.raises(KernelError, match="a router that mixes tokens"):
        model.generate(["a"], max_new_tokens=2)


def test_limited_memory_is_refused(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3)
    size = sum(path.stat().st_size for path in pool.path.glob("*/adapter_model.safetensors"))
    model: RoutedModel = load(str(llama_directory), pool.path, router=AsSlots(TopK(1)), expert_memory=size // 2)
    with pytest.raises((KernelError, BatchingError), match="all experts in memory"):
        model.generate(["a"], max_new_tokens=2)
