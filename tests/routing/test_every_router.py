"""What every registered router keeps to, on a decoder-only and an encoder-decoder model, with uneven experts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel, load_base
from glider.inference.spec import ModelSpec, load
from glider.routing.base import Decision, Prepared, QueryFeatures, Router, Site, routers
from glider.routing.condition import Condition
from glider.routing.linear import LinearTopK
from glider.routing.methods.mole import Mole, layers
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.methods.single import Single
from glider.routing.select import TopK
from glider.routing.specification import parsed, router_from
from glider.testing import check_decision, check_router

STATIC = ["single:e1", "oracle:half", "multitask", "merge", "merge(rank=3)", "merge(method=ties)", "merge(method=dare)"]
STATIC += ["lorahub"]
STATIC += ["mole", "adaptersoup-task"]
BY_PROFILES = {"hilora"}  # tested by themselves, like those that are trained beside a pool (tests/contribute)
TRAINED = {"joint", "vq", "mindskip", "mindskip-attention", "task-moe", "glider+joint", "glider+vq"}
CHOOSING = [
    "glider",
    "glider(top_p=0.6)",
    "glider(local_scale=experts)",
    "phatgoose(top_k=1)",
    "phatgoose",
    "phatgoose-query",
]
CHOOSING += ["arrow", "arrow(temperature=0.1)", "spectr", "glider+arrow", "glider+spectr(top_k=3)"]
CHOOSING += [
    "logo",
    "logo(k=2,signal=entropy)",
    "retrieval",
    "retrieval(k=3)",
    "adaptersoup(k=2)",
    "adaptersoup",
    "loraretriever(by=descriptions)",
]
CHOOSING += ["seqr", "seqr(norms=white)", "lag", "lag(candidates=2)", "mor-lora", "glider+seqr", "glider+lag"]
PARTLY = ["token-choice", "token-choice(normalise=sinkhorn)", "expert-choice", "expert-choice(normalise=sinkhorn)"]
PARTLY += ["expert-choice(normalise=sparse)", "expert-choice(local=spectr)"]  # weights of sum 1 or less
EVERY = [*STATIC, *CHOOSING, "per-task", "soft-moe", *PARTLY]
PROMPTS = ["hello there", "sort 3 1 2"]
RouterMaker = Callable[[str], Router]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test."""
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def router_of(base_directory: Path, pool: Pool, random_expert, tmp_path: Path) -> RouterMaker:
    """A router by its specification; `multitask`, `lorahub` and others that are fitted get what they need."""

    def make(text: str) -> Router:
        if text == "multitask":
            union = random_expert(tmp_path / "union", load_base(str(base_directory)), seed=9, gates=False)
            return routers.create(f"multitask:{union.directory}")
        if text == "per-task":
            return routers.create("per-task", scores={"e0": 0.5, "e1": 1.0, "half": 0.25}, k=2)
        if text == "mole":
            weights = {"e0": 0.5, "e1": 0.25, "half": 0.25}
            return Mole(dict.fromkeys(layers(pool), weights))
        if text == "adaptersoup-task":
            return routers.create(text, experts=("e0", "half"))
        if text == "lorahub":
            return routers.create("lorahub", weights={"e0": 0.5, "e1": -1.0, "half": 0.25}, composition="products")
        return router_from(*parsed(text))

    return make


def test_every_registered_router_is_here() -> None:
    here = {parsed(text)[0].partition(":")[0] for text in EVERY} | {"base"}
    ours = {entry.name for entry in routers if entry.make.__module__.startswith("glider.")}
    assert here | BY_PROFILES | TRAINED == ours


@pytest.mark.parametrize("text", [*EVERY, "base"])
def test_it_answers_scores_and_leaves_the_model_as_it_was(
    base_directory: Path, pool: Pool, router_of: RouterMaker, text: str
) -> None:
    model = load(str(base_directory), pool.path, router=router_of(text))
    answers, trace = model.generate_traced(PROMPTS, max_new_tokens=3)
    names = {expert.name for expert in model.attached.prepared.experts}
    for answer in answers:
        assert 1 <= len(answer.token_ids) <= 3
        assert set(answer.usage) <= names and (text == "base") == (not answer.usage)
        usage = sum(answer.usage.values())
        assert text == "base" or usage == pytest.approx(1, abs=1e-4) or (text in PARTLY and 0 < usage < 1)
    for call in trace.calls:
        check_decision(call.decision, model.attached.prepared.sites[call.site], len(call.decision.experts))
    likely = model.score(PROMPTS[0], ["yes", "no"])
    assert all(choice.log_likelihood < 0 for choice in likely)
    bare = load_base(str(base_directory)).model.state_dict()
    restored = model.detach().state_dict()
    assert restored.keys() == bare.keys()
    assert all(torch.equal(value, bare[name]) for name, value in restored.items())


@pytest.mark.parametrize("text", STATIC)
def test_a_static_router_folded_equals_itself(
    base_directory: Path, pool: Pool, router_of: RouterMaker, text: str
) -> None:
    model = load(str(base_directory), pool.path, router=router_of(text))
    ids = torch.tensor([[40, 71, 99, 5, 200, 13]])
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if model.model.config.is_encoder_decoder else {})}
    with torch.inference_mode():
        unfolded = model.model(**inputs).logits
        model.fold()
        torch.testing.assert_close(model.model(**inputs).logits, unfolded, atol=5e-4, rtol=1e-4)
        bare = load_base(str(base_directory)).model(**inputs).logits
    assert (unfolded - bare).abs().max() > 0.05


@pytest.mark.parametrize("text", EVERY)
def test_decisions_keep_the_contract(pool: Pool, router_of: RouterMaker, text: str) -> None:
    router = router_of(text)
    for seed in range(8):
        check_router(router, pool, seed=seed)
    prepared = router.prepare(pool)
    for site in prepared.sites.values():
        x = torch.randn(3, next(e.sites[site.name].in_features for e in pool if site.name in e.sites))
        term = router.condition(prepared, QueryFeatures(3, torch.randn(3, 384))).term
        if text.startswith("logo"):  # in the pass that it observes nobody has a part
            term = torch.rand(3, 3)
        decision = router.route(site, x, term)
        assert isinstance(decision, Decision)
        sums = decision.weights.float().sum(dim=-1)
        if text in PARTLY:
            assert ((sums > 0) & (sums <= 1 + 1e-4)).all()
        else:
            torch.testing.assert_close(sums, torch.ones(3), atol=1e-4, rtol=0)
        assert (decision.weights >= 0).all()


@pytest.mark.parametrize(
    "text", ["glider", "loraretriever(by=descriptions)", "merge", "expert-choice", "soft-moe", "logo"]
)
def test_the_contract_holds_on_a_model(base_directory: Path, pool: Pool, router_of: RouterMaker, text: str) -> None:
    check_router(router_of(text), pool, load_base(str(base_directory)))


@pytest.mark.slow
@pytest.mark.parametrize("text", EVERY)
def test_every_router_goes_through_the_kit(base_directory: Path, pool: Pool, router_of: RouterMaker, text: str) -> None:
    check_router(router_of(text), pool, load_base(str(base_directory)))


def test_no_router_changes_a_number_of_another(base_directory: Path, pool: Pool, router_of: RouterMaker) -> None:
    """Some of each kind say the same on a base that no other router has seen, and after all others were on it."""

    def scores(base: BaseModel, text: str) -> list[float]:
        model = ModelSpec(router=router_of(text)).over(base, pool)
        try:
            return [choice.log_likelihood for choice in model.score(PROMPTS[0], ["yes"])]
        finally:
            model.detach()

    watched = ["base", "glider", "phatgoose-query", "merge", "soft-moe", "logo"]
    shared = load_base(str(base_directory))
    alone = {text: scores(load_base(str(base_directory)), text) for text in watched}
    for text in EVERY:
        scores(shared, text)
    assert {text: scores(shared, text) for text in watched} == alone


@dataclass(frozen=True)
class Careless(Phatgoose):
    """PHATGOOSE with one mistake."""

    mistake: str = ""

    def prepare(self, pool: Pool) -> Prepared:
        prepared = super().prepare(pool)
        if self.mistake != "a row for each of":
            return prepared
        short = {name: replace(s, tensors={"gates": s["gates"][:-1]}) for name, s in prepared.sites.items()}
        return replace(prepared, sites=short)

    def route(self, site: Site, x: torch.Tensor, term: torch.Tensor | None) -> Decision:
        if self.mistake == "tokens are left":
            x.add_(1.0)
        if self.mistake == "does not depend on the others":
            x = x - x.mean(dim=0)
        decision = super().route(site, x, term)
        experts, weights = decision.experts, decision.weights
        if self.mistake == "experts of 0 to":
            experts = experts + 1
        if self.mistake == "each expert once":
            experts = experts[:, :1].expand_as(experts)
        if self.mistake == "no weight for an expert":
            weights = torch.full_like(weights, 0.5)
        if self.mistake == "finite weights":
            weights = weights * torch.nan
        if self.mistake == "a decision for each":
            experts, weights = experts[:-1], weights[:-1]
        if self.mistake == "the same tokens":
            experts = torch.rand(len(x), len(site.absent)).argsort(dim=-1)[:, :2]
        return Decision(experts, weights)


MISTAKES = ["a row for each of", "tokens are left", "does not depend on the others", "experts of 0 to"]
MISTAKES += ["each expert once", "no weight for an expert", "finite weights", "a decision for each", "the same tokens"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_careless_router_is_told_what_it_breaks(pool: Pool, mistake: str) -> None:
    check_router(Careless(), pool)
    with pytest.raises(AssertionError, match=mistake):
        for seed in range(8):
            check_router(Careless(TopK(3) if "no weight" in mistake else TopK(2), mistake=mistake), pool, seed=seed)


@dataclass(frozen=True)
class CarelessInAModel(Phatgoose):
    """PHATGOOSE with a mistake that shows when a model runs."""

    mistake: str = ""

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        if self.mistake != "answers of a batch":
            return super().condition(prepared, features)
        scores = torch.zeros(features.count, len(prepared.experts))
        scores[:, int(features.count == len(PROMPTS))] = 1.0  # by how many ask at once
        return Condition.of(scores, torch.full((features.count,), 100.0))

    def linear(self, site: Site) -> LinearTopK | None:
        linear = super().linear(site)
        if linear is None or self.mistake != "kernels say the same" or ".1." not in site.name:
            return linear  # what the first sites say is compared without a model
        return replace(linear, k=1)


@dataclass(frozen=True)
class Halved(Single):
    """One expert, of which every token has half, where a fold adds it whole."""

    def route(self, site: Site, x: torch.Tensor, term: torch.Tensor | None) -> Decision:
        decision = super().route(site, x, term)
        return replace(decision, weights=decision.weights / 2)


@pytest.mark.parametrize("mistake", ["answers of a batch", "kernels say the same"])
def test_a_router_that_is_careless_in_a_model_is_told_what_it_breaks(
    base_directory: Path, pool: Pool, mistake: str
) -> None:
    base = load_base(str(base_directory))
    with pytest.raises(AssertionError, match=mistake):
        check_router(CarelessInAModel(mistake=mistake), pool, base)
    assert torch.equal(next(base.model.parameters()), next(load_base(str(base_directory)).model.parameters()))


def test_an_expert_that_folds_into_something_else_is_told(base_directory: Path, pool: Pool) -> None:
    check_router(Single("e1"), pool, load_base(str(base_directory)))
    with pytest.raises(AssertionError, match="`linear` gives what `route` decides"):
        check_router(Halved("e1"), pool, load_base(str(base_directory)))


@pytest.mark.parametrize("text", [text for text in [*CHOOSING, "token-choice"] if "(" not in text])
def test_more_experts_than_the_pool_has_are_refused_before_the_model_is_loaded(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("glider.inference.base_model.load_base", lambda *_, **__: pytest.fail("the model was loaded"))
    router: Any = router_from(text, {"top_k": 4})
    with pytest.raises(RouterError, match=r"k of at most 3, the pool's experts .*; got 4"):
        load("nobody/no-such-model", pool.path, router=router)


def test_a_methods_own_k_is_clipped_by_a_small_pool(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 1)
    for text in ("glider", "phatgoose", "arrow", "adaptersoup", "loraretriever(by=descriptions)"):
        assert len(router_from(*parsed(text)).prepare(pool).experts) == 1
