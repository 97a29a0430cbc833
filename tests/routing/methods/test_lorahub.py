"""LoRAHub: the weighted sum of the products, and the search of its weights."""

import gc
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file

from glider.contribute.examples import collate, encode_rows
from glider.contribute.lorahub import LorahubSettings, search_lorahub
from glider.contribute.lorahub_search import Weighted, minimise
from glider.data.rows import Row
from glider.errors import BaseModelError, ConfigError, DataError, MissingDependency, PoolError, RouterError
from glider.experts.peft_format import ADAPTER_WEIGHTS_FILE
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel, load_base
from glider.inference.spec import load
from glider.layers.attach import attach
from glider.routing.base import Router, Site
from glider.routing.methods.lorahub import Lorahub
from glider.routing.methods.merge import Merge
from glider.routing.products import product

IDS = torch.tensor([[40, 71, 99, 5, 200, 13]])
ROWS = [Row(input=f"{word}?", output=word[::-1]) for word in ("abc", "hello", "xy", "routing")]


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    decoder = {"decoder_input_ids": IDS[:, :3]} if model.config.is_encoder_decoder else {}
    return model(input_ids=IDS, **decoder).logits


def uneven_pool(make_pool, grow_pool, base_directory: Path):
    pool = make_pool(base_directory, 2)
    return grow_pool(pool, base_directory, "half", seed=7, rank=2, alpha=8.0, sites=pool.sites[::2])


def test_the_expert_is_the_weighted_sum_of_products(base_directory: Path, make_pool, grow_pool) -> None:
    pool = uneven_pool(make_pool, grow_pool, base_directory)
    weights = {"e0": 0.5, "e1": -1.5, "half": 0.0}
    merged = Lorahub(weights, "products").expert(pool)
    for site in pool.sites:
        wanted = 0.5 * product(pool["e0"], site) - 1.5 * product(pool["e1"], site)
        torch.testing.assert_close(product(merged, site), wanted, atol=1e-5, rtol=1e-4)
    equal = Lorahub(dict.fromkeys(pool.names, 1 / 3), "products").expert(pool)
    for site in pool.sites:
        torch.testing.assert_close(product(equal, site), product(Merge().expert(pool), site))


def test_weights_of_zero_are_the_base(base_directory: Path, make_pool) -> None:
    pool, model = make_pool(base_directory, 2), load_base(str(base_directory)).model
    before = logits(model)
    attached = attach(model, pool, Lorahub({"e0": 0.0, "e1": 0.0}))
    assert torch.equal(logits(model), before)
    attached.fold()
    assert torch.equal(logits(model), before)


def test_the_stacked_form_computes_the_same(base_directory: Path, make_pool, grow_pool) -> None:
    pool, model = uneven_pool(make_pool, grow_pool, base_directory), load_base(str(base_directory)).model
    weights = torch.zeros(3)
    assert isinstance(Weighted(weights), Router)
    attached = attach(model, pool, Weighted(weights))
    weights.copy_(torch.tensor([0.7, -0.4, 1.1]))  # each evaluation only changes the weights
    stacked = logits(model)
    attached.detach()
    attached = attach(model, pool, Lorahub({"e0": 0.7, "e1": -0.4, "half": 1.1}, "products"))
    torch.testing.assert_close(stacked, logits(model), atol=2e-4, rtol=1e-4)
    attached.fold()
    torch.testing.assert_close(stacked, logits(model), atol=2e-4, rtol=1e-4)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 6), st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=9))
def test_the_stacked_decision_names_every_expert_once(tokens: int, weights: list[float]) -> None:
    router = Weighted(torch.tensor(weights))
    decision = router.route(Site("s", torch.zeros(len(weights), dtype=torch.bool)), torch.randn(tokens, 4), None)
    assert decision.experts.tolist() == [list(range(len(weights)))] * tokens
    assert torch.equal(decision.weights, torch.tensor(weights).expand(tokens, -1))


@pytest.mark.parametrize("composition", ["factors", "products"])
def test_the_search_changes_the_weights_and_lowers_the_loss(base_directory: Path, make_pool, composition: str) -> None:
    pool, base = make_pool(base_directory, 3), load_base(str(base_directory))
    before, threads = logits(base.model), threading.active_count()
    settings = {"budget": 30, "seed": 0, "composition": composition, "scale": "tokens"}
    found = search_lorahub(base, pool, ROWS, **settings)
    assert found.router.composition == composition
    assert torch.equal(logits(base.model), before)
    first = found.history[0]
    assert first.weights == (0.0, 0.0, 0.0)
    assert len(found.history) == 30
    assert any(abs(weight) > 0.01 for weight in found.weights.values())
    assert found.best.loss < first.loss - 0.01
    assert found.best.objective == min(evaluation.objective for evaluation in found.history)
    assert found.best.objective == pytest.approx(found.best.loss + 0.05 * sum(map(abs, found.best.weights)) / 3)
    assert all(abs(weight) <= 1.5 for evaluation in found.history for weight in evaluation.weights)
    assert search_lorahub(base, pool, ROWS, **settings).weights == found.weights
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "Messaging" in type(thread).__name__:
            thread.join(timeout=5)
    assert threading.active_count() <= threads


def test_the_loss_is_the_mean_over_target_tokens(base_directory: Path, make_pool) -> None:
    pool = make_pool(base_directory, 2)
    base = load_base(str(base_directory))
    found = search_lorahub(base, pool, ROWS, budget=1, scale="tokens")
    by_row = search_lorahub(base, pool, ROWS, budget=1)
    model = load(str(base_directory), pool.path, router="base")
    scores = [model.score(row.input, [row.output])[0] for row in ROWS]
    wanted = -sum(score.log_likelihood for score in scores) / sum(score.tokens for score in scores)
    assert found.best.loss == pytest.approx(wanted, rel=1e-4)
    assert by_row.best.loss == pytest.approx(wanted / len(ROWS), rel=1e-4)


def authors_objective(adapted: PeftModel, pool: Pool, weights: Sequence[float], base: BaseModel) -> float:
    """The rule of sail-sg/lorahub on one batch: each tensor of the adapters summed by itself with these weights, the
    loss of transformers over the number of rows, and 0.05 of the mean absolute weight."""
    states = [load_file(expert.directory / ADAPTER_WEIGHTS_FILE) for expert in pool]
    summed = {key: sum(w * state[key] for w, state in zip(weights, states, strict=True)) for key in states[0]}
    set_peft_model_state_dict(adapted, summed)
    rows, _ = encode_rows(ROWS, base.tokenizer, pool.experts[0].card.prompt, 2048)
    batch = collate(rows, base.tokenizer.pad_token_id, encoder_decoder=True)
    with torch.no_grad():
        loss = adapted(**batch).loss.item()
    return loss / len(rows) + 0.05 * sum(map(abs, weights)) / len(weights)


def test_the_objective_is_the_authors(t5_directory: Path, make_pool) -> None:
    """Products were summed where the authors sum A and B, and the loss weighed five times as much as theirs."""
    pool, base = make_pool(t5_directory, 3, alpha=8.0), load_base(str(t5_directory))
    found = search_lorahub(base, pool, ROWS, budget=8, seed=2)
    adapted = PeftModel.from_pretrained(load_base(str(t5_directory)).model, str(pool["e0"].directory)).eval()
    for evaluation in found.history:
        wanted = authors_objective(adapted, pool, evaluation.weights, base)
        assert evaluation.objective == pytest.approx(wanted, rel=1e-4)
    assert any(min(map(abs, evaluation.weights)) > 0.1 for evaluation in found.history)
    wanted = authors_objective(adapted, pool, found.best.weights, base)  # leaves the best weights in the adapter
    attached = attach(base.model, pool, found.router)
    torch.testing.assert_close(logits(base.model), logits(adapted), atol=2e-4, rtol=1e-4)
    attached.fold()
    torch.testing.assert_close(logits(base.model), logits(adapted), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("count", "budget"), [(20, 40), (3, 10)])
def test_the_best_evaluation_is_what_the_authors_take(count: int, budget: int) -> None:
    """They take what nevergrad recommends of a search in these bounds: the best point of those that it tried."""
    import nevergrad

    tried: list[tuple[float, tuple[float, ...]]] = []

    def loss(weights: Sequence[float]) -> float:
        tried.append((sum((weight - 0.3 * i) ** 2 for i, weight in enumerate(weights)), tuple(map(float, weights))))
        return tried[-1][0]

    space = nevergrad.p.Array(init=[0] * count, upper=[1.5] * count, lower=[-1.5] * count)
    space.random_state.seed(5)
    optimiser = nevergrad.optimizers.NGOpt(parametrization=space, budget=budget)
    with warnings.catch_warnings():  # of the optimisers that NGOpt tries
        warnings.simplefilter("ignore")
        recommended = optimiser.minimize(loss).value
    del optimiser
    gc.collect()  # a thread of it would keep the process alive
    assert len(tried) == budget and tried[0][1] == (0.0,) * count
    assert min(tried)[1] == pytest.approx(tuple(recommended))
    ours = minimise(lambda weights: loss(weights), count, budget=budget, l1=0.0, seed=5)
    assert len(ours) == budget and ours[0].weights == (0.0,) * count


def test_twenty_experts_are_drawn_by_the_seed(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 23, sites=["model.layers.0.self_attn.q_proj"], rank=1, embedder=None)
    drawn = [LorahubSettings.of(pool, seed=seed).members(pool) for seed in (0, 0, 1)]
    assert len(set(drawn[0])) == 20 and drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) < set(pool.names)
    assert len(LorahubSettings.of(pool, population=5).members(pool)) == 5
    assert LorahubSettings.of(pool, population=None).members(pool) == pool.names
    assert LorahubSettings.of(pool, population=99).members(pool) == pool.names
    found = search_lorahub(load_base(str(llama_directory)), pool, ROWS, budget=2, population=2)
    assert [name for name in pool.names if name not in found.population] == [
        name for name, weight in found.weights.items() if weight == 0 and name not in found.population
    ]


def test_factors_of_unlike_ranks_are_refused_before_the_base_is_needed(
    llama_directory: Path, make_pool, grow_pool
) -> None:
    pool = uneven_pool(make_pool, grow_pool, llama_directory)
    with pytest.raises(RouterError, match=r"equal rank.*ranks 2, 4 at .*Choose composition products"):
        LorahubSettings.of(pool)
    assert LorahubSettings.of(pool, composition="products").members(pool) == pool.names
    assert LorahubSettings.of(pool, population=["e0", "e1"]).members(pool) == ["e0", "e1"]
    with pytest.raises(RouterError, match="equal rank"):
        Lorahub({"e0": 1.0, "e1": 0.0, "half": 1.0}).expert(pool)
    assert Lorahub({"e0": 1.0, "e1": 0.5, "half": 0.0}).expert(pool).sites


def test_experts_outside_the_population_weigh_nothing(llama_directory: Path, make_pool) -> None:
    pool, base = make_pool(llama_directory, 3), load_base(str(llama_directory))
    found = search_lorahub(base, pool, ROWS, budget=12, population=["e2", "e0"], composition="products")
    assert found.population == ("e2", "e0")
    assert found.weights["e1"] == 0
    assert (found.weights["e2"], found.weights["e0"]) == found.best.weights
    merged = found.router.expert(pool)
    assert all(site.rank <= 8 for site in merged.sites.values())
    with pytest.raises(PoolError, match="nobody"):
        search_lorahub(base, pool, ROWS, population=["nobody"])


def test_the_penalty_keeps_useless_weights_small() -> None:
    free = minimise(lambda w: (w[0] - 1) ** 2, 2, budget=60, l1=0.0, seed=0)
    held = minimise(lambda w: (w[0] - 1) ** 2, 2, budget=60, l1=100.0, seed=0)
    assert min(free, key=lambda e: e.objective).weights[0] == pytest.approx(1, abs=0.1)
    assert min(held, key=lambda e: e.objective).weights[0] == pytest.approx(0, abs=0.05)


def test_a_search_needs_rows_its_base_and_a_budget(
    llama_directory: Path, other_llama_directory: Path, make_pool
) -> None:
    pool, base = make_pool(llama_directory, 1), load_base(str(llama_directory))
    with pytest.raises(DataError, match="few-shot rows"):
        search_lorahub(base, pool, [])
    with pytest.raises(DataError, match="beyond 2 tokens"):
        search_lorahub(base, pool, ROWS, max_tokens=2)
    for wrong, told in [({"budget": 0}, "budget"), ({"l1": -1.0}, "l1"), ({"colour": 1}, "colour")]:
        with pytest.raises(ConfigError, match=told):
            search_lorahub(base, pool, ROWS, **wrong)
    with pytest.raises(RouterError, match="empty"):
        search_lorahub(base, pool, ROWS, population=[])
    with pytest.raises(BaseModelError, match="other weights"):
        search_lorahub(load_base(str(other_llama_directory)), pool, ROWS)


def test_a_loss_that_is_no_number_ends_the_search() -> None:
    with pytest.raises(RouterError, match="finite loss"):
        minimise(lambda w: float("nan"), 2, budget=3, l1=0.0, seed=0)


def test_without_nevergrad_its_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nevergrad", None)
    with pytest.raises(MissingDependency, match=r"pip install 'glider-moe\[lorahub\]'"):
        minimise(lambda w: 0.0, 1, budget=1, l1=0.0, seed=0)


def test_without_weights_it_says_how_to_search(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 2)
    with pytest.raises(RouterError, match="search_lorahub"):
        Lorahub().prepare(pool)
    with pytest.raises(RouterError, match="none of e1"):
        Lorahub({"e0": 1.0}).prepare(pool)
    with pytest.raises(RouterError, match="e9, not in the pool"):
        Lorahub({"e0": 1.0, "e1": 1.0, "e9": 1.0}).prepare(pool)


@pytest.mark.parametrize("weight", [1.6, -2.0, float("nan"), float("inf")])
def test_weights_beyond_the_bounds_are_refused(weight: float) -> None:
    with pytest.raises(RouterError, match=r"\[-1.5, 1.5\]"):
        Lorahub({"e0": weight})
