"""The references: the best expert on the evaluation set, and the one trained on all data."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glider.errors import ExpertError, PoolError, RouterError
from glider.inference.base_model import load_base
from glider.inference.spec import load
from glider.layers.attach import attach
from glider.routing.base import Router, routers
from glider.routing.methods.multitask import Multitask
from glider.routing.methods.oracle import Oracle, best_expert
from glider.routing.methods.single import Single

SITES = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
NAMES = st.text("abc", min_size=1, max_size=3)


def test_the_oracle_is_single_of_the_best(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3)
    wanted = Single("e1").prepare(pool).experts
    assert Oracle(scores={"e0": 0.2, "e1": 0.9, "e2": 0.4}).prepare(pool).experts == wanted
    assert Oracle("e1").prepare(pool).experts == wanted
    assert routers.create("oracle:e1").prepare(pool).experts == wanted
    assert isinstance(Oracle("e1"), Router)


@given(st.dictionaries(NAMES, st.floats(-5, 5), min_size=1))
def test_no_expert_beats_the_best(scores: dict[str, float]) -> None:
    assert scores[best_expert(scores)] == max(scores.values())


def test_the_first_of_equals_is_the_best() -> None:
    assert best_expert({"b": 1.0, "a": 1.0}) == "b"


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_failed_evaluation_is_no_score(score: float) -> None:
    with pytest.raises(RouterError, match="none of broken"):
        best_expert({"fine": 0.1, "broken": score})
    with pytest.raises(RouterError, match="labels"):
        best_expert({})


def test_without_evaluation_it_says_so_before_the_model_is_loaded(
    llama_directory: Path, make_pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(llama_directory, 2, sites=SITES)
    monkeypatch.setattr("glider.inference.base_model.load_base", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(RouterError, match="evaluation with labels"):
        load(str(llama_directory), pool.path, router=Oracle())
    with pytest.raises(RouterError, match=r"every expert .*none of e1"):
        load(str(llama_directory), pool.path, router=Oracle(scores={"e0": 1.0}))
    with pytest.raises(RouterError, match="one of e7"):
        load(str(llama_directory), pool.path, router=Oracle(scores={"e0": 1.0, "e1": 1.0, "e7": 1.0}))
    with pytest.raises(RouterError, match="evaluation with labels"):
        load(str(llama_directory), pool.path, router="oracle")
    with pytest.raises(RouterError, match="one of a name and scores"):
        Oracle("e0", {"e0": 1.0})
    with pytest.raises(PoolError, match="e0, e1"):
        Oracle("nobody").prepare(pool)


def test_multitask_is_the_expert_in_its_own_directory(
    base_directory: Path, make_pool, random_expert, tmp_path: Path
) -> None:
    pool, base = make_pool(base_directory, 2), load_base(str(base_directory))
    ids = torch.tensor([[40, 71, 99, 5]])
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if base.model.config.is_encoder_decoder else {})}
    expert = random_expert(tmp_path / "union", base, seed=9, rank=6, gates=False)
    attached = attach(base.model, pool, routers.create(f"multitask:{expert.directory}"))
    with torch.inference_mode():
        got = base.model(**inputs).logits
        attached.fold()
        torch.testing.assert_close(base.model(**inputs).logits, got, atol=2e-4, rtol=1e-4)
        attached.unfold()
        attached.detach()
        for site in expert.sites:
            a, b = expert.factors(site)
            base.model.get_submodule(site).weight += expert.scaling(site) * b @ a
        torch.testing.assert_close(base.model(**inputs).logits, got, atol=2e-4, rtol=1e-4)


def test_multitask_needs_the_pools_base_and_a_directory_of_its_own(
    llama_directory: Path,
    other_llama_directory: Path,
    make_pool,
    random_expert,
    edit_json,
    edit_tensors,
    tmp_path: Path,
) -> None:
    pool = make_pool(llama_directory, 1, sites=SITES)
    other = random_expert(tmp_path / "other", load_base(str(other_llama_directory)), sites=SITES)
    with pytest.raises(PoolError, match=r"other at .*made for"):
        Multitask(str(other.directory)).prepare(pool)
    with pytest.raises(RouterError, match=r"outside the pool.*e0"):
        Multitask(str(pool["e0"].directory)).prepare(pool)
    with pytest.raises(ExpertError):
        Multitask(str(tmp_path / "nowhere")).prepare(pool)
    with pytest.raises(RouterError, match="multitask:PATH"):
        routers.create("multitask:")
    plain = random_expert(tmp_path / "plain", load_base(str(llama_directory)), sites=SITES)
    edit_json(plain.directory / "card.json", prompt={"kind": "plain"})
    with pytest.raises(RouterError, match="prompt format"):
        Multitask(str(plain.directory)).prepare(pool)
    broken = random_expert(tmp_path / "broken", load_base(str(llama_directory)), sites=SITES)
    weights = broken.directory / "adapter_model.safetensors"
    edit_tensors(weights, lambda tensors: next(iter(tensors.values())).fill_(float("nan")))
    with pytest.raises(ExpertError, match="finite weights"):
        Multitask(str(broken.directory)).prepare(pool)
