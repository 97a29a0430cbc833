"""Installing a pool on a model: all sites or none, and the model stays a transformers model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForCausalLM, T5ForConditionalGeneration

from glider.errors import GliderError, PoolError, RouterError
from glider.experts.card import ExpertCard
from glider.experts.expert import write_expert
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import load_base
from glider.inference.queries import Query
from glider.inference.spec import load
from glider.layers.attach import Generation, Storage, attach
from glider.layers.routed_linear import RoutedLinear
from glider.routing.base import Router
from glider.routing.methods.merge import Merge
from glider.routing.methods.phatgoose import Phatgoose

IDS = torch.tensor([[40, 71, 99, 5, 200, 13]])


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": IDS, **({"decoder_input_ids": IDS[:, :3]} if model.config.is_encoder_decoder else {})}


def routed_sites(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, RoutedLinear)]


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(**inputs_of(model)).logits


def test_every_site_and_no_other_module_is_routed(base_directory: Path, make_pool) -> None:
    pool, model = make_pool(base_directory, 2), load_base(str(base_directory)).model
    attach(model, pool, Phatgoose())
    assert sorted(routed_sites(model)) == sorted(pool.sites)


def test_a_site_the_model_lacks_leaves_it_untouched(llama_directory: Path, make_pool) -> None:
    pool, model = make_pool(llama_directory, 1), load_base(str(llama_directory)).model
    model.model.layers = model.model.layers[:1]
    untouched = dict(model.named_modules())
    with pytest.raises(PoolError, match=r"model\.layers\.1\.\S+ in the base model, as expert e0 adapts it"):
        attach(model, pool, Phatgoose())
    assert dict(model.named_modules()) == untouched


def test_the_embedded_pool_is_known_by_its_name(llama_directory: Path) -> None:
    with pytest.raises(GliderError, match="SmolLM2"):  # for another base than this
        attach(load_base(str(llama_directory)).model, "demo")


def test_a_site_of_another_width_leaves_the_model_untouched(llama_directory: Path, make_pool) -> None:
    pool, model = make_pool(llama_directory, 1), load_base(str(llama_directory)).model
    model.model.layers[1].mlp.down_proj = torch.nn.Linear(50, 32)
    untouched = dict(model.named_modules())
    with pytest.raises(PoolError, match=r"48 -> 32 at model\.layers\.1\.mlp\.down_proj .*Linear 50 -> 32"):
        attach(model, pool, Phatgoose())
    assert dict(model.named_modules()) == untouched


def test_a_site_that_is_no_linear_module_is_named(llama_directory: Path, make_pool) -> None:
    pool, model = make_pool(llama_directory, 1), load_base(str(llama_directory)).model
    model.model.layers[0].mlp.up_proj = torch.nn.SiLU()
    with pytest.raises(PoolError, match="SiLU None -> None"):
        attach(model, pool, Phatgoose())
    assert routed_sites(model) == []


def test_a_second_pool_is_refused_and_the_first_stays(llama_directory: Path, make_pool) -> None:
    pool, model = make_pool(llama_directory, 2), load_base(str(llama_directory)).model
    attached = attach(model, pool, Phatgoose())
    modules, before = dict(model.named_modules()), logits(model)
    with pytest.raises(PoolError, match="detach"):
        attach(model, pool, Phatgoose())
    assert dict(model.named_modules()) == modules
    assert torch.equal(logits(model), before)
    attached.detach()
    attach(model, pool, Phatgoose())
    assert torch.equal(logits(model), before)


def test_a_refused_router_leaves_the_model_untouched(llama_directory: Path, make_pool) -> None:
    pool, model = make_pool(llama_directory, 1, gates=False), load_base(str(llama_directory)).model
    with pytest.raises(RouterError, match="gate"):
        attach(model, pool, Phatgoose())
    assert routed_sites(model) == []


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(llama_directory: Path, make_pool, training: bool) -> None:
    pool, model = make_pool(llama_directory, 1), load_base(str(llama_directory)).model
    model.train(training)
    attach(model, pool, Phatgoose())
    assert {module.training for module in model.modules()} == {training}


def test_experts_are_no_parameters_and_no_part_of_the_state(base_directory: Path, make_pool) -> None:
    pool, model = make_pool(base_directory, 2), load_base(str(base_directory)).model
    parameters, values = sum(p.numel() for p in model.parameters()), len(model.state_dict())
    attach(model, pool, Phatgoose())
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_moved_after_attaching_carries_its_experts(base_directory: Path, make_pool, dtype: torch.dtype) -> None:
    pool, model = make_pool(base_directory, 2), load_base(str(base_directory)).model
    attached = attach(model, pool, Phatgoose())
    wanted = logits(model)
    model.to(dtype)
    got = logits(model)
    assert got.dtype == dtype
    tolerance = 1e-3 if dtype == torch.float64 else 0.5 * wanted.abs().max().item()
    torch.testing.assert_close(got.float(), wanted, atol=tolerance, rtol=0)
    attached.detach()
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_sites_follow_the_input_to_another_device(llama_directory: Path, make_pool) -> None:
    pool, model = make_pool(llama_directory, 2), load_base(str(llama_directory)).model
    attach(model, pool, Phatgoose())
    name = pool.sites[0]
    layer: Any = model.get_submodule(name).to("meta")
    layer(torch.zeros(1, 3, layer.in_features, device="meta"))
    site, bank = layer.current.site, layer.current.bank
    assert {tensor.device.type for tensor in (site["gates"], site.absent, bank.A)} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_experts_are_stored_as_asked(llama_directory: Path, make_pool, dtype: torch.dtype) -> None:
    pool = make_pool(llama_directory, 2)
    plain, stored = (load_base(str(llama_directory)).model for _ in range(2))
    attach(plain, pool, Phatgoose())
    attach(stored, pool, Phatgoose(), Storage(expert_dtype=dtype))
    layer: Any = stored.get_submodule(pool.sites[0])
    assert layer.current.bank.A.dtype == layer.current.bank.B.dtype == dtype
    x = torch.randn(4, layer.in_features)
    got, wanted = layer(x), plain.get_submodule(pool.sites[0])(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=0.2 if dtype == torch.bfloat16 else 1e-6, rtol=0.05)


def test_experts_take_the_dtype_of_the_model(llama_directory: Path, make_pool) -> None:
    pool, model = make_pool(llama_directory, 1), load_base(str(llama_directory), dtype=torch.bfloat16).model
    attach(model, pool, Phatgoose())
    layer: Any = model.get_submodule(pool.sites[0])
    assert layer.current.bank.A.dtype == torch.bfloat16
    assert logits(model).dtype == torch.bfloat16


def test_t5_finds_the_weight_of_its_output_layer(t5_directory: Path, make_pool) -> None:
    pool, model = make_pool(t5_directory, 2), load_base(str(t5_directory)).model
    site = "encoder.block.0.layer.1.DenseReluDense.wo"
    original = model.get_submodule(site)
    attach(model, pool, Phatgoose())
    routed: Any = model.get_submodule(site)
    assert isinstance(routed, RoutedLinear)
    assert routed.weight is original.weight
    assert routed.bias is None
    assert torch.isfinite(logits(model)).all()


def test_the_base_is_called_and_never_read(llama_directory: Path, make_pool) -> None:
    class Opaque(torch.nn.Module):
        """A linear layer without a weight, as quantised ones may be."""

        def __init__(self, inner: torch.nn.Linear):
            super().__init__()
            self.in_features, self.out_features = inner.in_features, inner.out_features
            self.call = lambda x: torch.nn.functional.linear(x, inner.weight.detach())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.call(x)

    pool = make_pool(llama_directory, 2)
    plain, opaque = (load_base(str(llama_directory)).model for _ in range(2))
    layer = opaque.model.layers[0].self_attn
    layer.q_proj = Opaque(layer.q_proj)
    for model in (plain, opaque):
        attach(model, pool, Phatgoose())
    torch.testing.assert_close(logits(opaque), logits(plain))


def test_the_attached_model_is_still_its_class_and_generates(base_directory: Path, make_pool) -> None:
    pool, model = make_pool(base_directory, 2), load_base(str(base_directory)).model
    attach(model, pool, Phatgoose())
    assert isinstance(model, LlamaForCausalLM | T5ForConditionalGeneration)
    output = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, min_new_tokens=4)
    assert output.shape == (1, 5 if model.config.is_encoder_decoder else IDS.shape[1] + 4)


def test_gradients_reach_the_input_through_experts_and_base(llama_directory: Path, make_pool) -> None:
    pool, model = make_pool(llama_directory, 2), load_base(str(llama_directory)).model
    attach(model, pool, Phatgoose())
    layer: Any = model.get_submodule(pool.sites[0])
    x = torch.randn(1, 3, layer.in_features, requires_grad=True)
    (layer(x) - layer.base(x)).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_one_of_two_models_with_the_same_pool_can_be_detached(llama_directory: Path, make_pool) -> None:
    pool, model = make_pool(llama_directory, 2), load_base(str(llama_directory)).model
    twin = copy.deepcopy(model)
    attached, kept = attach(model, pool, Phatgoose()), attach(twin, pool, Phatgoose())
    wanted = logits(twin)
    attached.detach()
    assert torch.equal(logits(twin), wanted)
    assert kept.context is not attached.context


def test_an_expert_of_another_architecture_is_a_pool_error(
    llama_directory: Path, t5_directory: Path, make_pool
) -> None:
    pool = make_pool(llama_directory, 1)
    model = load_base(str(t5_directory)).model
    with pytest.raises(PoolError, match="another architecture"):
        attach(model, pool, Phatgoose())
    assert routed_sites(model) == []


def test_an_expert_of_another_width_cannot_join_the_pool(llama_directory: Path, make_pool) -> None:
    pool, base = make_pool(llama_directory, 1), load_base(str(llama_directory))
    site = "model.layers.0.self_attn.q_proj"
    card = ExpertCard(name="wide", task="t", base=base.identity, prompt=PromptFormat(kind="chat"))
    lora = {
        f"base_model.model.{site}.lora_A.weight": torch.ones(2, 40),
        f"base_model.model.{site}.lora_B.weight": torch.ones(32, 2),
    }
    config = LoraConfig(r=2, lora_alpha=2, target_modules=[site])
    write_expert(pool.path / "wide", card, config, lora, {}, None)
    with pytest.raises(PoolError, match="40 -> 32 in wide"):
        pool.add("wide")


def test_folding_a_static_expert_changes_no_output_and_unfolding_restores_the_weights(
    make_pool, base_directory: Path
) -> None:
    pool = make_pool(base_directory)
    model = load(str(base_directory), pool.path, router="single:e1")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    unfolded = model.score("which one?", ["a", "bc"])
    model.fold()
    assert not any(isinstance(module, RoutedLinear) for module in model.model.modules())
    for folded, wanted in zip(model.score("which one?", ["a", "bc"]), unfolded, strict=True):
        assert folded.log_likelihood == pytest.approx(wanted.log_likelihood, abs=1e-3)
    model.unfold()
    assert model.score("which one?", ["a", "bc"]) == unfolded
    bare = model.detach()
    assert all(torch.equal(bare.state_dict()[name], value) for name, value in before.items())


def test_a_folded_expert_stays_after_detaching(make_pool, base_directory: Path, tmp_path: Path) -> None:
    pool = make_pool(base_directory)
    model = load(str(base_directory), pool.path, router="single:e1")
    ids = torch.tensor([[40, 71, 99, 5]])
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if model.model.config.is_encoder_decoder else {})}
    with torch.inference_mode():
        wanted = model.model(**inputs).logits
        model.fold()
        bare = model.detach()
        torch.testing.assert_close(bare(**inputs).logits, wanted, atol=5e-4, rtol=1e-4)
        bare.save_pretrained(tmp_path / "folded")
        saved = type(bare).from_pretrained(tmp_path / "folded").eval()
        torch.testing.assert_close(saved(**inputs).logits, wanted, atol=5e-4, rtol=1e-4)
    with pytest.raises(PoolError, match="load the base anew"):
        attach(bare, pool, Phatgoose())


@pytest.mark.parametrize("router", ["single:head", Merge()], ids=str)
def test_an_expert_on_a_tied_output_layer_is_not_folded(
    tmp_path: Path, make_pool, llama_directory: Path, router: Router | str
) -> None:
    base = load_base(str(llama_directory))
    tied = type(base.model)(type(base.model.config)(**{**base.model.config.to_dict(), "tie_word_embeddings": True}))
    tied.save_pretrained(tmp_path / "tied")
    base.tokenizer.save_pretrained(tmp_path / "tied")
    pool = make_pool(tmp_path / "tied", 1, sites=["model.layers.0.self_attn.q_proj"])
    on_head(pool, "head")
    model = load(str(tmp_path / "tied"), pool.path, router=router)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    with pytest.raises(RouterError, match=r"lm_head.*shares"):
        model.fold()
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def on_head(pool: Pool, name: str) -> None:
    """Add an expert on the output layer alone."""
    like = pool["e0"].card
    card = like.model_copy(update={"name": name, "embedder": None})
    lora = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(2, 32),
        "base_model.model.lm_head.lora_B.weight": torch.ones(259, 2),
    }
    write_expert(pool.path / name, card, LoraConfig(r=2, lora_alpha=2, target_modules=["lm_head"]), lora, {}, None)
    pool.add(name)


def test_a_routed_model_is_saved_as_the_bare_one(make_pool, base_directory: Path, tmp_path: Path) -> None:
    bare = load_base(str(base_directory)).model
    model = load(str(base_directory), make_pool(base_directory).path, router="phatgoose")
    assert model.model.state_dict().keys() == bare.state_dict().keys()
    model.model.save_pretrained(tmp_path / "saved")
    saved = type(bare).from_pretrained(tmp_path / "saved")
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in bare.state_dict().items())
    state = {name: torch.zeros_like(value) for name, value in bare.state_dict().items()}
    assert not any(model.model.load_state_dict(state))  # no name is missing, and none is unexpected
    assert all(not bool(value.any()) for value in model.model.state_dict().values())


def test_a_query_of_the_base_is_refused_while_an_expert_is_folded(make_pool, base_directory: Path) -> None:
    model = load(str(base_directory), make_pool(base_directory, 2).path, router="single:e0")
    queries, choices = ["one", Query("another", verdict="base")], [["a"], ["a"]]
    asks = [
        lambda: model.generate(queries, max_new_tokens=4),
        lambda: model.generate_batch(queries, max_new_tokens=4),
        lambda: model.score_many(queries, choices)[0],
        lambda: [piece.text for piece in model.stream(queries, max_new_tokens=4)],
        lambda: model.trace(queries[1])[0],
    ]
    wanted = [ask() for ask in asks]
    model.fold()
    for ask in asks:
        with pytest.raises(RouterError, match="unfold"):
            ask()
    assert model.generate(queries[:1], max_new_tokens=4)
    model.unfold()
    assert [ask() for ask in asks] == wanted


def test_folding_needs_a_static_router(make_pool, llama_directory: Path) -> None:
    model = load(str(llama_directory), make_pool(llama_directory).path, router="phatgoose")
    with pytest.raises(RouterError, match="chooses among 3 experts"):
        model.fold()


def test_folding_twice_is_folding_once_and_a_folded_model_takes_no_second_pool(
    make_pool, llama_directory: Path
) -> None:
    pool = make_pool(llama_directory)
    model = load(str(llama_directory), pool.path, router="single:e0")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    model.fold()
    once = {name: value.clone() for name, value in model.model.state_dict().items()}
    model.fold()
    assert all(torch.equal(value, once[name]) for name, value in model.model.state_dict().items())
    with pytest.raises(PoolError, match="unfold"):
        attach(model.model, pool, Phatgoose())
    model.unfold()
    model.unfold()
    bare = model.detach()
    with pytest.raises(RouterError, match="detached"):
        model.unfold()
    assert all(torch.equal(bare.state_dict()[name], value) for name, value in before.items())
    attach(bare, pool, Phatgoose()).detach()


def test_folding_the_base_router_does_nothing(make_pool, llama_directory: Path) -> None:
    model = load(str(llama_directory), make_pool(llama_directory).path, router="base")
    before = logits(model.model)
    model.fold()
    assert torch.equal(logits(model.model), before)


def test_generations_of_the_same_experts_hold_them_once(base_directory: Path, make_pool, grow_pool) -> None:
    """Each reload of a served pool took as much memory as the pool again, for as long as any earlier query lasted."""
    pool, model = make_pool(base_directory, 2), load_base(str(base_directory)).model
    attached = attach(model, pool, Phatgoose())
    routed, first = logits(model), attached.take()

    def banks(number: int) -> list[Any]:
        layers = [module for module in model.modules() if isinstance(module, RoutedLinear)]
        return [layer._served[number].bank for layer in layers]

    def serve(other: Pool, storage: Storage | None = None) -> list[Any]:
        generation = attached.replace(Phatgoose(), Phatgoose().prepare(other), storage or Storage())
        return banks(generation.number)

    before = banks(first.number)
    assert all(one is other for one, other in zip(serve(pool.reload()), before, strict=True))
    assert torch.equal(logits(model), routed)
    unlike = serve(pool, Storage(expert_dtype=torch.float64))
    assert not any(one is other for one, other in zip(unlike, before, strict=True))
    larger = grow_pool(pool, base_directory, "late", seed=77)
    grown = serve(larger)
    assert not any(one is other for one, other in zip(grown, before, strict=True))
    assert all(one is other for one, other in zip(serve(pool), before, strict=True))
    attached.give_back(first)  # with the generation that had them first they do not go
    assert torch.equal(logits(model), routed)


def test_generations_of_the_same_gates_hold_them_once(base_directory: Path, make_pool, grow_pool) -> None:
    pool, model = make_pool(base_directory, 2), load_base(str(base_directory)).model
    attached = attach(model, pool, Phatgoose())
    routed, first = logits(model), attached.take()

    def gates(generation: Generation) -> list[int]:
        return [site["gates"].data_ptr() for site in generation.prepared.sites.values()]

    def serve(other: Pool) -> Generation:
        return attached.replace(Phatgoose(), Phatgoose().prepare(other), Storage())

    assert gates(serve(pool.reload())) == gates(first)
    served = [module.current.site["gates"].data_ptr() for module in model.modules() if isinstance(module, RoutedLinear)]
    assert sorted(served) == sorted(gates(first))
    assert not set(gates(serve(grow_pool(pool, base_directory, "late", seed=77)))) & set(gates(first))
    assert gates(serve(pool)) == gates(first)
    attached.give_back(first)
    assert torch.equal(logits(model), routed)
