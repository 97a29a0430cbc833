"""What must hold for every model, pool and batch: the invariants at the end of the routing mathematics."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import nn

from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel, load_base
from glider.inference.model import RoutedModel
from glider.inference.spec import load
from glider.layers.attach import attach
from glider.layers.bank import Bank
from glider.layers.context import Batch, RoutingContext
from glider.layers.routed_linear import RoutedLinear
from glider.layers.routed_site import RoutedSite
from glider.routing.base import Decision, Prepared, QueryFeatures, Router, Site, absent_at, routers
from glider.routing.condition import Condition
from glider.routing.methods.glider import Glider
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.scores import standardise
from glider.routing.select import Select, TopK, TopP

PROMPTS = ["What is the capital of France, and since when?", "sort 3 1 2", "Translate into German: good morning", "hi"]
IDS = torch.tensor([[40, 71, 99, 5, 200, 13, 77], [8, 8, 150, 31, 62, 90, 4]])
CLOSE = {"atol": 2e-3, "rtol": 1e-4}
"""Absolute: logits of the random models are tens, and 1e-6 in the renormalisation is all that may differ."""


@dataclass(frozen=True)
class Fixed:
    """The same weights, one for each expert, for every token."""

    weights: tuple[float, ...]

    def prepare(self, pool: Pool) -> Prepared:
        return Prepared(pool.experts, {name: Site(name, absent_at(name, pool.experts)) for name in pool.sites})

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        return Condition.local(features.count)

    def route(self, site: Site, x: torch.Tensor, term: torch.Tensor | None) -> Decision:
        count = len(self.weights)
        return Decision(torch.arange(count).expand(len(x), -1), torch.tensor(self.weights).expand(len(x), -1))


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": IDS, **({"decoder_input_ids": IDS[:, :5]} if model.config.is_encoder_decoder else {})}


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(**inputs_of(model)).logits


def routed_logits(base: BaseModel, pool: Pool, router: Router) -> torch.Tensor:
    attached = attach(base.model, pool, router)
    with attached.routing(None):
        result = logits(base.model)
    attached.detach()
    return result


def peft_model(directory: Path, expert: Path) -> PeftModel:
    return PeftModel.from_pretrained(load_base(str(directory)).model, str(expert)).eval()


ROUTERS = [Glider(p=0.8), Phatgoose(), Phatgoose(TopK(1)), Phatgoose(TopP(0.5)), Fixed((1.0,))]


@pytest.mark.parametrize("router", ROUTERS, ids=["glider", "top-2", "top-1", "top-p", "fixed"])
def test_a_pool_of_one_is_the_peft_adapter_alone(base_directory: Path, make_pool, router: Router) -> None:
    pool = make_pool(base_directory, 1)
    base = load_base(str(base_directory))
    untouched = logits(base.model)
    got = routed_logits(base, pool, router)
    wanted = logits(peft_model(base_directory, pool["e0"].directory))
    assert (wanted - untouched).abs().max() > 1
    torch.testing.assert_close(got, wanted, **CLOSE)


def test_a_pool_of_one_is_the_merged_weights(base_directory: Path, make_pool) -> None:
    pool = make_pool(base_directory, 1)
    got = routed_logits(load_base(str(base_directory)), pool, Glider(p=0.8))
    merged: Any = peft_model(base_directory, pool["e0"].directory).merge_and_unload()
    torch.testing.assert_close(got, logits(merged), **CLOSE)


def test_a_pool_of_one_writes_and_samples_what_the_adapter_does(base_directory: Path, make_pool) -> None:
    pool = make_pool(base_directory, 1)
    model = load(str(base_directory), pool.path)
    peft = peft_model(base_directory, pool["e0"].directory)
    ids = torch.tensor([model.prompt.prompt_ids(model.tokenizer, PROMPTS[0])])
    for sampling in ({"do_sample": False}, {"do_sample": True, "top_k": 0}):
        torch.manual_seed(3)
        answer = model.generate(PROMPTS[:1], max_new_tokens=12, **sampling)[0]
        torch.manual_seed(3)
        output = peft.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, pad_token_id=0, **sampling
        )
        start = 1 if model.model.config.is_encoder_decoder else ids.shape[1]
        assert list(answer.token_ids) == output[0, start:].tolist()


@pytest.mark.parametrize("name", ["e0", "e1", "e2"])
def test_experts_of_unlike_rank_in_one_pool_are_each_themselves(
    base_directory: Path, make_pool, grow_pool, name: str
) -> None:
    pool = make_pool(base_directory, 1, rank=2)
    pool = grow_pool(pool, base_directory, "e1", rank=8, alpha=3.0, seed=1)
    pool = grow_pool(pool, base_directory, "e2", rank=1, alpha=16.0, seed=2, dtype=torch.bfloat16)
    wanted = logits(peft_model(base_directory, pool[name].directory))
    chosen = Fixed(tuple(float(name == other) for other in pool.names))
    base = load_base(str(base_directory))
    torch.testing.assert_close(routed_logits(base, pool, chosen), wanted, **CLOSE)
    torch.testing.assert_close(routed_logits(base, pool, routers.create(f"single:{name}")), wanted, **CLOSE)


def test_a_site_of_one_expert_alone_belongs_to_it(llama_directory: Path, make_pool, grow_pool) -> None:
    first = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    second = ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj"]
    pool = make_pool(llama_directory, 1, sites=first)
    pool = grow_pool(pool, llama_directory, "e1", sites=second, seed=1, rank=2)
    got = routed_logits(load_base(str(llama_directory)), pool, Phatgoose())
    merged: Any = peft_model(llama_directory, pool["e0"].directory).merge_and_unload()
    merged = PeftModel.from_pretrained(merged, str(pool["e1"].directory)).merge_and_unload()  # pyright: ignore
    torch.testing.assert_close(got, logits(merged), **CLOSE)


def test_the_base_router_is_the_untouched_model_bit_for_bit(base_directory: Path, make_pool) -> None:
    pool = make_pool(base_directory, 2)
    base = load_base(str(base_directory))
    untouched = logits(base.model)
    attach(base.model, pool, routers.create("base"))
    assert torch.equal(logits(base.model), untouched)


def test_detaching_restores_the_model_exactly(base_directory: Path, make_pool) -> None:
    pool = make_pool(base_directory, 2)
    base = load_base(str(base_directory))
    untouched, modules = logits(base.model), dict(base.model.named_modules())
    state = {name: value.clone() for name, value in base.model.state_dict().items()}
    attached = attach(base.model, pool, Glider(p=0.8))
    with attached.routing(None):
        assert not torch.equal(logits(base.model), untouched)
    attached.detach()
    attached.detach()
    after = dict(base.model.named_modules())
    assert list(after) == list(modules)
    assert all(after[name] is module for name, module in modules.items())
    assert list(base.model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in base.model.state_dict().items())
    assert torch.equal(logits(base.model), untouched)


@pytest.fixture
def mixed(base_directory: Path, make_pool) -> RoutedModel:
    """A glider model whose threshold lies between the prompts, so that a batch of them mixes both alphas."""
    pool = make_pool(base_directory, 4)
    condition = load(str(base_directory), pool.path, p=0.0).condition(PROMPTS)
    assert condition is not None
    best = condition.global_scores.amax(dim=-1).sort().values
    return load(str(base_directory), pool.path, p=(best[1] + best[2]).item() / 2)


@pytest.mark.parametrize(
    "generation", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"]
)
def test_a_mixed_batch_is_its_queries_one_by_one(mixed: RoutedModel, generation: dict[str, Any]) -> None:
    answers = mixed.generate(PROMPTS, max_new_tokens=10, **generation)
    assert {answer.alpha for answer in answers} == {3, 103}
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        [alone] = mixed.generate([prompt], max_new_tokens=10, **generation)
        assert (answer.token_ids, answer.alpha) == (alone.token_ids, alone.alpha)
        assert answer.global_scores == pytest.approx(alone.global_scores, abs=1e-5)


def test_the_global_term_of_each_row_reaches_its_row(mixed: RoutedModel) -> None:
    condition = mixed.condition(PROMPTS)
    assert condition is not None
    with torch.inference_mode(), mixed.attached.routing(None):
        local = mixed.model(**inputs_of(mixed.model)).logits
    for row in range(2):
        silent = Condition.of(condition.global_scores[:2], torch.tensor([103.0 * (row == 0), 103.0 * (row == 1)]))
        with torch.inference_mode(), mixed.attached.routing(silent):
            got = mixed.model(**inputs_of(mixed.model)).logits
        torch.testing.assert_close(got[1 - row], local[1 - row], **CLOSE)
        assert (got[row] - local[row]).abs().max() > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(mixed: RoutedModel, side: str) -> None:
    condition = mixed.condition(PROMPTS)
    assert condition is not None
    batch = mixed.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side=side)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    seq2seq = mixed.model.config.is_encoder_decoder
    more = {"decoder_input_ids": IDS[:1, :4].expand(len(ids), -1)} if seq2seq else positions(mask)
    with torch.inference_mode(), mixed.attached.routing(condition):
        padded = mixed.model(input_ids=ids, attention_mask=mask, **more).logits
    for row, prompt in enumerate(PROMPTS):
        own = mixed.tokenizer(prompt, return_tensors="pt")["input_ids"]
        more = {"decoder_input_ids": IDS[:1, :4]} if seq2seq else {}
        one = Condition.of(condition.global_scores[row : row + 1], condition.alpha[row : row + 1])
        with torch.inference_mode(), mixed.attached.routing(one):
            alone = mixed.model(input_ids=own, **more).logits[0]
        torch.testing.assert_close(padded[row] if seq2seq else padded[row][mask[row].bool()], alone, **CLOSE)


def positions(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_changes_nothing(mixed: RoutedModel, beams: int) -> None:
    with_cache, without = (
        mixed.generate(PROMPTS, max_new_tokens=10, num_beams=beams, use_cache=cached) for cached in (True, False)
    )
    assert [answer.token_ids for answer in with_cache] == [answer.token_ids for answer in without]


def test_a_seed_fixes_a_sample(mixed: RoutedModel) -> None:
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        samples.append([a.token_ids for a in mixed.generate(PROMPTS, max_new_tokens=8, do_sample=True, top_k=0)])
    assert samples[0] == samples[1] != samples[2]


def test_the_order_of_the_pool_changes_nothing(base_directory: Path, make_pool) -> None:
    pool = make_pool(base_directory, 4)
    before = load(str(base_directory), pool.path, p=0.0).generate(PROMPTS, max_new_tokens=8, trace=True)
    pool = pool.remove("e0").add("e0").remove("e2").add("e2")
    assert pool.names == ["e1", "e3", "e0", "e2"]
    after = load(str(base_directory), pool.path, p=0.0).generate(PROMPTS, max_new_tokens=8, trace=True)
    for one, other in zip(before, after, strict=True):
        assert one.token_ids == other.token_ids
        assert one.global_scores == pytest.approx(other.global_scores, abs=1e-5)
        assert one.usage == pytest.approx(other.usage, abs=1e-4)


def test_an_expert_absent_from_a_site_changes_nothing_there(base_directory: Path, make_pool, grow_pool) -> None:
    pool = make_pool(base_directory, 2)
    last = pool.sites[-1]
    before = load(str(base_directory), pool.path, router="phatgoose").model
    grow_pool(pool, base_directory, "late", sites=[last], rank=7, seed=9)
    after = load(str(base_directory), pool.path, router="phatgoose").model
    for name in pool.sites:
        x = torch.randn(5, before.get_submodule(name).in_features)
        same = torch.allclose(before.get_submodule(name)(x), after.get_submodule(name)(x), atol=1e-5)
        assert same == (name != last), name


def test_equal_weights_of_all_experts_are_the_exact_merge(base_directory: Path, make_pool) -> None:
    pool = make_pool(base_directory, 3)
    base, merged = load_base(str(base_directory)), load_base(str(base_directory)).model
    with torch.no_grad():
        for site in pool.sites:
            for expert in pool:
                a, b = expert.factors(site)
                merged.get_submodule(site).weight += expert.scaling(site) * (b @ a) / len(pool)
    torch.testing.assert_close(routed_logits(base, pool, Fixed((1 / 3, 1 / 3, 1 / 3))), logits(merged), **CLOSE)


def test_a_pool_copied_elsewhere_is_the_same_pool(base_directory: Path, make_pool, tmp_path: Path) -> None:
    pool = make_pool(base_directory, 3)
    copied = Pool.open(shutil.copytree(pool.path, tmp_path / "copy"))
    for one, other in zip(pool, copied, strict=True):
        assert all(torch.equal(x, y) for site in one.sites for x, y in zip(*tensors(one, other, site), strict=True))
    first, second = (load(str(base_directory), path) for path in (pool.path, copied.path))
    with first.attached.routing(first.condition(PROMPTS[:2])):
        wanted = logits(first.model)
    with second.attached.routing(second.condition(PROMPTS[:2])):
        assert torch.equal(logits(second.model), wanted)


def tensors(one: Any, other: Any, site: str) -> Iterator[list[torch.Tensor]]:
    for expert in (one, other):
        yield [*expert.factors(site), expert.gate(site), expert.instruction]


def random_layer(experts: int, rank: int, width: int, out: int, select: Select, seed: int) -> RoutedLinear:
    """One routed site with random gates and pairs."""
    chance = torch.Generator().manual_seed(seed)
    base = nn.Linear(width, out)
    bank = Bank(
        torch.randn(experts, rank, width, generator=chance),
        torch.randn(experts, out, rank, generator=chance),
        torch.rand(experts, generator=chance) + 0.5,
    )
    gates = standardise(torch.randn(experts, width, generator=chance))
    site = Site("s", torch.zeros(experts, dtype=torch.bool), {"gates": gates})
    return RoutedLinear.over(base, RoutedSite(site, bank, Glider(select, p=0.8)), RoutingContext())


def run(layer: RoutedLinear, x: torch.Tensor, condition: Condition | None) -> torch.Tensor:
    with torch.inference_mode(), layer.context.use(Batch.of(condition)):
        return layer(x)


shapes = given(
    experts=st.integers(1, 6),
    rank=st.integers(1, 4),
    width=st.integers(2, 12),
    out=st.integers(1, 9),
    rows=st.integers(1, 4),
    length=st.integers(1, 5),
    select=st.sampled_from([TopK(1), TopK(2), TopK(9), TopP(0.3), TopP(0.9)]),
    seed=st.integers(0, 999),
)
often = settings(deadline=None, derandomize=True, max_examples=60)


def random_condition(rows: int, experts: int, seed: int) -> Condition:
    chance = torch.Generator().manual_seed(seed + 1)
    return Condition.of(torch.randn(rows, experts, generator=chance), 5 * torch.rand(rows, generator=chance))


@often
@shapes
def test_at_any_site_one_expert_is_the_merged_weight(
    experts: int, rank: int, width: int, out: int, rows: int, length: int, select: Select, seed: int
) -> None:
    layer = random_layer(1, rank, width, out, select, seed)
    x = torch.randn(rows, length, width)
    bank, base = layer.current.bank, layer.base
    merged = layer.weight + bank.scaling[0] * bank.B[0] @ bank.A[0]
    wanted = torch.nn.functional.linear(x, merged, base.bias)  # pyright: ignore
    got = run(layer, x, random_condition(rows, 1, seed))
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)


@often
@shapes
def test_at_any_site_a_batch_is_its_rows(
    experts: int, rank: int, width: int, out: int, rows: int, length: int, select: Select, seed: int
) -> None:
    layer = random_layer(experts, rank, width, out, select, seed)
    x, condition = torch.randn(rows, length, width), random_condition(rows, experts, seed)
    together = run(layer, x, condition)
    for row in range(rows):
        one = slice(row, row + 1)
        alone = run(layer, x[one], Condition.of(condition.global_scores[one], condition.alpha[one]))
        torch.testing.assert_close(together[one], alone, atol=2e-4, rtol=1e-4)


@often
@shapes
def test_at_any_site_order_and_unreachable_experts_change_nothing(
    experts: int, rank: int, width: int, out: int, rows: int, length: int, select: Select, seed: int
) -> None:
    layer = random_layer(experts, rank, width, out, select, seed)
    x, condition = torch.randn(rows, length, width), random_condition(rows, experts, seed)
    wanted = run(layer, x, condition)
    order = torch.randperm(experts)
    bank, gates = layer.current.bank, layer.current.site["gates"]
    shuffled = Bank(bank.A[order], bank.B[order], bank.scaling[order])
    site = Site("s", layer.current.site.absent, {"gates": gates[order]})
    other = RoutedLinear.over(layer.base, RoutedSite(site, shuffled, layer.current.router), RoutingContext())
    got = run(other, x, Condition.of(condition.global_scores[:, order], condition.alpha))
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)

    more = Bank(*(torch.cat([t, torch.ones_like(t[:1])]) for t in (bank.A, bank.B, bank.scaling)))
    site = Site("s", torch.tensor([False] * experts + [True]), {"gates": torch.cat([gates, gates[:1]])})
    other = RoutedLinear.over(layer.base, RoutedSite(site, more, layer.current.router), RoutingContext())
    scores = torch.cat([condition.global_scores, torch.full((rows, 1), 9.0)], dim=1)
    got = run(other, x, Condition.of(scores, condition.alpha))
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)
