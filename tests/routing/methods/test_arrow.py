"""Arrow is PEFT's Arrow, and its decisions keep the contract, alone and under the global term."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import ArrowConfig, create_arrow_model
from peft.tuners.lora.arrow import ArrowLoraLinearLayer

from glider.errors import RouterError
from glider.experts.membership import add_expert
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.spec import load
from glider.layers.attach import attach
from glider.routing.base import Site, routers
from glider.routing.methods.arrow import Arrow, ArrowVectors
from glider.routing.methods.glider import Glider
from glider.routing.select import TopK

IDS = torch.tensor([[40, 71, 99, 5, 200, 13, 77], [8, 8, 150, 31, 62, 90, 4]])
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test."""
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def steep_pool(base_directory: Path, make_pool, edit_tensors) -> Pool:
    """Four experts whose products have well separated singular values: PEFT's 15 power iterations then converge.

    Their outputs are small, so that the two top-k rules are compared rather than how a random network amplifies.
    """
    pool: Pool = make_pool(base_directory, 4, rank=3)
    decay = 0.05 * torch.tensor([1.0, 0.2, 0.04])

    def steepen(tensors: dict[str, torch.Tensor]) -> None:
        for name, b in tensors.items():
            if "lora_B" in name:
                a = torch.linalg.qr(tensors[name.replace("lora_B", "lora_A")].T).Q.T
                tensors[name.replace("lora_B", "lora_A")] = a.contiguous()
                tensors[name] = (torch.linalg.qr(b).Q * decay).contiguous()

    for expert in list(pool):
        edit_tensors(expert.directory / "adapter_model.safetensors", steepen)
        add_expert(pool.path, expert.name)
    return Pool.open(pool.path)


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": IDS, **({"decoder_input_ids": IDS[:, :5]} if model.config.is_encoder_decoder else {})}


@torch.inference_mode()
def peft_logits(directory: Path, pool: Pool, config: ArrowConfig) -> torch.Tensor:
    paths = [str(expert.directory) for expert in pool]
    model: Any = create_arrow_model(load_base(str(directory)).model, paths, config).eval()
    return model(**inputs_of(model)).logits


@torch.inference_mode()
def our_logits(directory: Path, pool: Pool, router: Any) -> torch.Tensor:
    model = load_base(str(directory)).model
    attached = attach(model, pool, router)
    with attached.routing(None):
        return model(**inputs_of(model)).logits


@pytest.mark.parametrize(("k", "temperature"), [(2, 1.0), (3, 0.5), (1, 1.0), (4, 2.0)])
def test_logits_are_those_of_pefts_arrow(base_directory: Path, steep_pool: Pool, k: int, temperature: float) -> None:
    config = ArrowConfig(top_k=k, router_temperature=temperature, rng_seed=0)
    wanted = peft_logits(base_directory, steep_pool, config)
    got = our_logits(base_directory, steep_pool, Arrow(TopK(k), temperature))
    other = our_logits(base_directory, steep_pool, Arrow(TopK(k % 4 + 1), temperature))
    assert (other - wanted).abs().max() > 2e-3
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_on_any_adapters_it_is_pefts_with_converged_iterations(
    llama_directory: Path, make_pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT stops its power iteration after 15 steps, too few for random adapters; ours is the exact vector."""
    pool = make_pool(llama_directory, 3, alpha=0.2)
    monkeypatch.setattr(ArrowLoraLinearLayer.top_right_singular_vec_from_BA, "__defaults__", (3000, 1e-8))
    wanted = peft_logits(llama_directory, pool, ArrowConfig(top_k=2, rng_seed=0))
    torch.testing.assert_close(our_logits(llama_directory, pool, Arrow()), wanted, atol=1e-4, rtol=0)


def test_vectors_are_first_right_singular_vectors_of_unit_length(llama_directory: Path, make_pool, grow_pool) -> None:
    pool = make_pool(llama_directory, 1, rank=2, sites=[Q, DOWN])
    pool = grow_pool(pool, llama_directory, "e1", rank=6, alpha=0.5, seed=1, sites=[DOWN])
    sites = Arrow().prepare(pool).sites
    assert sites[Q].absent.tolist() == [False, True]
    for row, expert in zip(sites[DOWN]["directions"], pool, strict=True):  # pyright: ignore
        a, b = expert.factors(DOWN)
        wanted = torch.linalg.svd(b @ a).Vh[0]
        assert abs(row @ wanted).item() == pytest.approx(1, abs=1e-5)
        assert row.norm().item() == pytest.approx(1, abs=1e-5)


def test_an_adapter_that_does_nothing_scores_zero(llama_directory: Path, make_pool, edit_tensors) -> None:
    pool = make_pool(llama_directory, 2, sites=[Q])
    key = f"base_model.model.{Q}.lora_B.weight"
    edit_tensors(pool["e1"].directory / "adapter_model.safetensors", lambda t: t.update({key: 0 * t[key]}))
    add_expert(pool.path, "e1")
    pool = Pool.open(pool.path)
    scores = ArrowVectors().scores(torch.randn(5, 32), Arrow().prepare(pool).sites[Q])
    assert (scores[:, 1] == 0).all() and (scores[:, 0] > 0).all()


@pytest.mark.parametrize("make", [Arrow, partial(routers.create, "glider+arrow")])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_none_is_refused(make: Callable[..., Any], temperature: float) -> None:
    with pytest.raises(RouterError, match="temperature above 0"):
        make(temperature=temperature)


@settings(deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 6), st.integers(1, 5), st.integers(1, 12), st.integers(1, 7), st.booleans())
def test_decisions_keep_the_contract(
    data: st.DataObject, tokens: int, experts: int, width: int, k: int, conditioned: bool
) -> None:
    chance = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    present = data.draw(st.integers(0, experts - 1))
    absent = torch.tensor([i != present and data.draw(st.booleans()) for i in range(experts)])
    vectors = torch.nn.functional.normalize(torch.randn(experts, width, generator=chance), dim=-1)
    vectors[absent] = 0
    x = 30 * torch.randn(tokens, width, generator=chance)
    term = 100 * torch.randn(tokens, experts, generator=chance) if conditioned else None
    router = Glider(TopK(k), p=0.5, local="arrow") if conditioned else Arrow(TopK(k))
    decision = router.route(Site("s", absent, {"directions": vectors}), x, term)
    assert decision.experts.shape == decision.weights.shape == (tokens, min(k, experts))
    assert ((decision.experts >= 0) & (decision.experts < experts)).all()
    assert torch.isfinite(decision.weights).all() and (decision.weights >= 0).all()
    torch.testing.assert_close(decision.weights.sum(dim=-1), torch.ones(tokens), atol=1e-5, rtol=0)
    assert (decision.weights[absent[decision.experts]] == 0).all()
    flipped = router.route(
        Site("s", absent, {"directions": -vectors}), x, term
    )  # the sign of a singular vector means nothing
    assert torch.equal(flipped.experts, decision.experts) and torch.equal(flipped.weights, decision.weights)


@pytest.mark.parametrize("name", ["arrow", "glider+arrow"])
def test_a_model_answers_with_experts_of_unlike_shape(
    base_directory: Path, make_pool, grow_pool, linear_names, name: str
) -> None:
    names = linear_names(base_directory)
    pool = make_pool(base_directory, 2, rank=2, gates=False)
    pool = grow_pool(pool, base_directory, "e2", rank=7, seed=2, sites=names[::3], gates=False)
    model = load(str(base_directory), pool.path, router=name)
    answers, trace = model.generate_traced(["hello there", "sort 3 1 2"], max_new_tokens=4)
    assert all(sum(answer.usage.values()) == pytest.approx(1, abs=1e-4) for answer in answers)
    assert all((answer.alpha is None) == (name == "arrow") for answer in answers)
    for call in trace.calls:
        if call.site not in pool["e2"].sites:
            assert (call.decision.weights[call.decision.experts == 2] == 0).all()


def test_the_global_term_overrules_and_without_it_glider_arrow_is_arrow(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3, sites=[Q], gates=False)
    router = Glider(p=0.5, local="arrow")
    prepared = router.prepare(pool)
    x, term = torch.randn(9, 32), torch.tensor([[0.0, 0.0, 90.0]]).expand(9, 3)
    assert (router.route(prepared.sites[Q], x, term).experts[:, 0] == 2).all()
    alone = Arrow().route(prepared.sites[Q], x, None)
    assert torch.equal(router.route(prepared.sites[Q], x, None).weights, alone.weights)
    assert prepared.global_term is not None and prepared.global_term.p == 0.5


def test_names_and_papers() -> None:
    told = {entry.name: entry.paper for entry in routers}
    assert told["arrow"] == "arXiv:2405.11157" and told["glider+arrow"] == "arXiv:2410.07172, arXiv:2405.11157"
    assert routers.create("arrow", temperature=0.5) == Arrow(temperature=0.5)


@pytest.fixture
def linear_names() -> Callable[[Path], list[str]]:
    """Names of a base's linear layers."""

    def names(directory: Path) -> list[str]:
        model = load_base(str(directory)).model
        return [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]

    return names
