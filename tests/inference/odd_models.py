"""Tiny random models whose caches, positions or masks are of other kinds than Llama's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from glider.contribute.adopt import import_adapter
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import load_base
from glider.inference.model import RoutedModel
from glider.inference.spec import load

from ..conftest import byte_tokenizer

_TOKENS = {"vocab_size": 259, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.3}
_LLAMA = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=1024, **_TOKENS,
)  # fmt: skip
_NO_DROPOUT = {"attention_dropout": 0.0, "embed_dropout": 0.0, "resid_dropout": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llama": ("LlamaConfig", _LLAMA, ["q_proj"]),
    "mpt": ("MptConfig", dict(d_model=32, n_layers=2, n_heads=4, max_seq_len=1024, **_TOKENS), ["Wqkv"]),
    "gpt_neo": (
        "GPTNeoConfig",
        dict(hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=100,
             max_position_embeddings=1024, **_NO_DROPOUT, **_TOKENS),
        ["q_proj"],
    ),
    "llama4": (
        "Llama4TextConfig",
        dict(_LLAMA, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, num_experts_per_tok=1,
             attention_chunk_size=16, no_rope_layers=[1, 0], layer_types=["chunked_attention", "full_attention"],
             use_qk_norm=False),
        ["q_proj", "o_proj"],
    ),
    "jamba": (
        "JambaConfig",
        dict(_LLAMA, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
             num_experts=2, num_experts_per_tok=1, mamba_d_state=8, mamba_d_conv=4, mamba_dt_rank=4,
             use_mamba_kernels=False),
        ["q_proj"],
    ),
    "lfm2": (
        "Lfm2Config",
        dict(_LLAMA, block_auto_adjust_ff_dim=False, block_ff_dim=48, layer_types=["conv", "full_attention"],
             conv_L_cache=3),
        ["q_proj"],
    ),
    "deepseek_v2": (  # keys of another width than values
        "DeepseekV2Config",
        dict(_LLAMA, num_key_value_heads=4, head_dim=8, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
             qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=48,
             n_group=1, topk_group=1, first_k_dense_replace=1),
        ["o_proj"],
    ),
    "gpt_bigcode": (  # one head of keys, which its configuration does not say
        "GPTBigCodeConfig", dict(n_embd=32, n_layer=2, n_head=4, n_positions=512, multi_query=True, **_TOKENS),
        ["c_attn"],
    ),
    "phi3": (  # other rotary angles past 64 tokens
        "Phi3Config",
        dict(_LLAMA, original_max_position_embeddings=64, rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
            "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}),
        ["qkv_proj"],
    ),
    "diffllama": ("DiffLlamaConfig", _LLAMA, ["q_proj"]),  # its attention parts values behind the cache
    "mamba": (
        "MambaConfig", dict(hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4, **_TOKENS),
        ["in_proj", "x_proj"],
    ),
}  # fmt: skip


@pytest.fixture
def base_of(tmp_path: Path) -> Callable[[str], Path]:
    """A tiny random model of a family, saved with a tokenizer."""

    def make(name: str) -> Path:
        settings, sizes, _ = MODELS[name]
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, settings)(**sizes)).eval()
        directory = tmp_path / name
        model.save_pretrained(directory)
        byte_tokenizer(chat=False).save_pretrained(directory)
        return directory

    return make


@pytest.fixture
def routed(base_of: Callable[[str], Path], tmp_path: Path) -> Callable[[str], RoutedModel]:
    """A tiny random model of a family under one imported adapter."""

    def make(name: str) -> RoutedModel:
        base = base_of(name)
        loaded = load_base(str(base))
        peft = get_peft_model(loaded.model, LoraConfig(r=4, target_modules=MODELS[name][2], task_type="CAUSAL_LM"))
        draw = torch.Generator().manual_seed(1)
        for key, value in peft.named_parameters():
            if "lora_" in key:
                value.data = 0.5 * torch.randn(value.shape, generator=draw) / value.shape[-1] ** 0.5
        peft.save_pretrained(tmp_path / "adapter")
        pool = Pool.create(tmp_path / "pool", loaded.identity)
        import_adapter(tmp_path / "adapter", str(base), pool.path / "ex")
        pool.add("ex")
        return load(str(base), pool.path, router="single:ex", prompt=PromptFormat(kind="raw"))

    return make
