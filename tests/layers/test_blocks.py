"""Attention blocks that prompts skip: the residual alone, with a cache, in batches, in beams, in every known family."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, StaticCache

from glider.errors import QueryError, RouterError
from glider.experts.pool import Pool
from glider.experts.router_files import put_router
from glider.inference.base_model import load_base
from glider.inference.queries import Query
from glider.inference.spec import load
from glider.layers.attach import attach
from glider.layers.blocks import KNOWN, Blocks
from glider.layers.caches import cache_after, with_cache
from glider.layers.context import RoutingContext
from glider.layers.sequences import watch_passes
from glider.routing.base import Block
from glider.routing.methods.mindskip_attention import KIND, MindSkipAttention, blocks_of
from glider.routing.methods.phatgoose import Phatgoose
from glider.testing import check_router

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "granite", "olmo", "olmo2", "cohere")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 64, "initializer_range": 0.3, "sliding_window": 4}
SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
IDS = torch.tensor([[0, 0, 5, 9, 33], [7, 60, 12, 3, 41]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test."""
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path / "cache"))


@dataclass(frozen=True)
class Fixed:
    """A rule that looks at nothing: the rows that a block is computed for."""

    rows: Sequence[float]

    def computed(self, block: Block, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.rows) if block["gate"].any() else torch.ones(len(x))


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**SIZES, **SPECIAL)).eval()


def skipping(model: Any, rows: Sequence[float], layers: Sequence[int], closing: ExitStack) -> Blocks:
    """The model with blocks that some rows skip in some layers."""
    context = RoutingContext()
    blocks = Blocks(model, context)
    watch_passes(model, context, closing)
    names = {layer: f"model.layers.{layer}.self_attn" for layer in range(2)}
    given = {name: Block(name, {"gate": torch.tensor([float(layer in layers)])}) for layer, name in names.items()}
    blocks.put(0, Fixed(rows), given)  # pyright: ignore[reportArgumentType]
    closing.callback(blocks.close)
    return blocks


@torch.inference_mode()
def continued(model: Any) -> torch.Tensor:
    """Logits of three more tokens after a prompt, on its cache."""
    given = model(input_ids=IDS, attention_mask=MASK, use_cache=True)
    logits, mask = [given.logits[:, -1]], MASK
    for token in (11, 22, 33):
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
        position = mask.sum(dim=1, keepdim=True) - 1
        given = model(
            input_ids=torch.full((2, 1), token), attention_mask=mask, position_ids=position,
            **with_cache(model, cache_after(given)), use_cache=True,
        )  # fmt: skip
        logits.append(given.logits[:, -1])
    return torch.stack(logits)


def test_every_known_block_is_tried_here() -> None:
    kinds = {type(tiny(family).model.layers[0].self_attn).__name__ for family in FAMILIES}
    assert kinds == KNOWN


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_that_is_skipped_is_one_whose_output_is_zero(family: str) -> None:
    """The reference is the model with the output projection of that block set to zero."""
    plain = continued(tiny(family))
    for layers in ([0], [1], [0, 1]):
        without = tiny(family)
        for layer in layers:
            projection = without.model.layers[layer].self_attn.o_proj
            for parameter in projection.parameters():
                parameter.data.zero_()
        wanted = continued(without)
        assert (wanted - plain).abs().max() > 1e-2
        model = tiny(family)
        with ExitStack() as closing:
            skipping(model, [0.0, 0.0], layers, closing)
            torch.testing.assert_close(continued(model), wanted, atol=1e-5, rtol=1e-4)
            closing.close()
            skipping(model, [0.0, 1.0], layers, closing)
            mixed = continued(model)
        torch.testing.assert_close(mixed[:, 0], wanted[:, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mixed[:, 1], plain[:, 1], atol=1e-5, rtol=1e-4)
        assert "forward" not in vars(model.model.layers[0].self_attn)
        assert torch.equal(continued(model), plain)


def test_gradients_pass_blocks_that_some_prompts_skip() -> None:
    """Whoever trains has a cache too, where the model's own settings say so."""
    gradients = []
    for use_cache in (False, True):
        model = tiny("llama")
        with ExitStack() as closing:
            skipping(model, [0.0, 1.0], [0], closing)
            model(input_ids=IDS, labels=IDS, use_cache=use_cache).loss.backward()
        gradients.append(model.model.layers[0].self_attn.k_proj.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_cache_of_fixed_length_is_refused() -> None:
    model = tiny("llama")
    with ExitStack() as closing:
        skipping(model, [0.0, 0.0], [0], closing)
        with pytest.raises(QueryError, match="grows with the tokens"):
            model(input_ids=IDS, **with_cache(model, StaticCache(config=model.config, max_cache_len=16)))


@pytest.fixture
def pool(llama_directory: Path, make_pool) -> Pool:
    """Three experts with gates of blocks that some prompts skip."""
    pool = make_pool(llama_directory, 3)
    draw = torch.Generator().manual_seed(4)
    gates = {}
    for name, width in blocks_of(pool).items():
        gates |= {f"{name}.gate": torch.randn(width, generator=draw), f"{name}.bias": torch.zeros(1)}
    return put_router(pool, KIND, gates, {})


@torch.inference_mode()
def test_prompts_skip_each_for_itself(llama_directory: Path, pool: Pool) -> None:
    """By the rule of the authors' code, without padding; an answer keeps to what its prompt decided."""
    router = MindSkipAttention()
    prepared = router.prepare(pool)
    base = load_base(str(llama_directory)).model
    attached = attach(base, pool, router, prepared=prepared)
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 250, (length,), generator=draw).tolist() for length in (1, 7, 2, 5, 3, 6)]
    seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    hooks = [
        base.get_submodule(name).register_forward_hook(
            lambda _, __, given, made, name=name: seen.append((name, given["hidden_states"], made[0])), with_kwargs=True
        )
        for name in prepared.blocks
    ]

    def passes(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Decisions (passes, rows, blocks) of prompts and two tokens more, and the last logits."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(one)) + list(one) for one in prompts])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
        seen.clear()
        with attached.routing(None):
            position = (mask.cumsum(dim=1) - 1).clamp(min=0)
            given = base(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=True)
            for name, x, _ in seen:
                real = mask[:, :, None]
                gate = (x * real).sum(dim=1) / real.sum(dim=1) @ prepared.blocks[name]["gate"]
                shown.append(gate.sigmoid() >= 0.5)
            for token in (50, 60):
                mask = torch.cat([mask, torch.ones(len(ids), 1, dtype=torch.long)], dim=1)
                given = base(
                    input_ids=torch.full((len(ids), 1), token), attention_mask=mask, use_cache=True,
                    position_ids=mask.sum(dim=1, keepdim=True) - 1, **with_cache(base, cache_after(given)),
                )  # fmt: skip
        made = torch.stack([made.flatten(1).any(dim=1) for _, _, made in seen])
        return made.view(3, len(prepared.blocks), -1).transpose(1, 2), given.logits[:, -1]

    shown: list[torch.Tensor] = []
    decisions, logits = passes(rows)
    assert torch.equal(torch.stack(shown, dim=1), decisions[0])
    assert torch.equal(decisions[1], decisions[0]) and torch.equal(decisions[2], decisions[0])
    assert decisions.any() and not decisions.all()
    for row, prompt in enumerate(rows):
        own, one = passes([prompt])
        assert torch.equal(own[:, 0], decisions[:, row])
        torch.testing.assert_close(one[0], logits[row], atol=1e-4, rtol=1e-3)
    for hook in hooks:
        hook.remove()
    attached.detach()


def test_it_goes_through_the_kit_and_gives_the_model_back(llama_directory: Path, pool: Pool) -> None:
    base = load_base(str(llama_directory))
    check_router(MindSkipAttention(), pool, base)
    assert all("forward" not in vars(base.model.get_submodule(name)) for name in blocks_of(pool))


def test_open_gates_change_nothing(llama_directory: Path, pool: Pool) -> None:
    skipped = load(str(llama_directory), pool.path, router=MindSkipAttention(tau=0.0)).score("a prompt", ["yes", "no"])
    plain = load(str(llama_directory), pool.path, router=Phatgoose()).score("a prompt", ["yes", "no"])
    for one, other in zip(skipped, plain, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-3)


def test_a_query_that_is_left_to_the_base_computes_all_blocks(llama_directory: Path, pool: Pool) -> None:
    model = load(str(llama_directory), pool.path, router=MindSkipAttention(tau=1.0))
    queries = [Query("one", verdict="base"), Query("a longer second prompt")]
    (left, _), (alone,) = model.generate(queries, max_new_tokens=4), model.generate(queries[1:], max_new_tokens=4)
    bare = load(str(llama_directory), pool.path, router="base").generate(["one"], max_new_tokens=4)[0]
    assert left.token_ids == bare.token_ids
    assert model.generate(queries, max_new_tokens=4)[1].token_ids == alone.token_ids


def test_an_encoder_decoder_is_refused(t5_directory: Path, make_pool) -> None:
    with pytest.raises(RouterError, match="experts that adapt attention"):
        MindSkipAttention().prepare(make_pool(t5_directory, 2))


def test_experts_of_other_sites_alone_are_refused(llama_directory: Path, make_pool) -> None:
    narrow = make_pool(llama_directory, 2, sites=["model.layers.0.mlp.up_proj"])
    with pytest.raises(RouterError, match="experts that adapt attention"):
        MindSkipAttention().prepare(narrow)


def test_blocks_of_another_kind_are_refused(llama_directory: Path, make_pool) -> None:
    model = tiny("llama")
    model.model.layers[0].self_attn.__class__ = type("OtherAttention", (type(model.model.layers[0].self_attn),), {})
    router = MindSkipAttention()
    own = make_pool(llama_directory, 2)
    gates = {f"{name}.{part}": torch.zeros(1) for name in blocks_of(own) for part in ("gate", "bias")}
    prepared = router.prepared_with(own, gates)
    with pytest.raises(RouterError, match="OtherAttention at model"):
        Blocks(model, RoutingContext()).require(prepared)


def test_packed_passes_pieces_and_no_cache_are_refused(llama_directory: Path, pool: Pool) -> None:
    model = load(str(llama_directory), pool.path, router=MindSkipAttention())
    with pytest.raises(QueryError, match="cache"):
        model.generate(["one"], max_new_tokens=2, use_cache=False)
    with pytest.raises(QueryError, match="one pass"):
        model.generate(["one"], max_new_tokens=2, prefill_chunk_size=1)
