"""On the bare base the harness's own model and ours give the same, whatever the base's attention and cache are."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model

from glider.contribute.adopt import import_adapter
from glider.evaluation.lm_eval_model import GliderLM
from glider.experts.pool import Pool
from glider.inference.base_model import load_base

from ..conftest import byte_tokenizer

_TOKENS = {"vocab_size": 259, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
_SIZES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, initializer_range=0.3, **_TOKENS,
)  # fmt: skip
BASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # configuration, adapted layers, sizes
    "absolute positions": ("GPT2Config", "c_attn", dict(n_embd=32, n_layer=2, n_head=4, n_positions=256, **_TOKENS)),
    "a sliding window": ("MistralConfig", "q_proj", dict(_SIZES, sliding_window=24)),
    "windows in turn": ("Gemma2Config", "q_proj", dict(_SIZES, head_dim=8, sliding_window=24, query_pre_attn_scalar=8)),
    "ALiBi": (
        "BloomConfig", "query_key_value", dict(hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, **_TOKENS),
    ),
    "a hybrid": (
        "Lfm2Config", "q_proj",
        dict(_SIZES, block_auto_adjust_ff_dim=False, block_ff_dim=48, layer_types=["conv", "full_attention"]),
    ),
    "recurrent": (
        "MambaConfig", "in_proj", dict(hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4, **_TOKENS),
    ),
    "encoder and decoder": (
        "BartConfig", "q_proj",
        dict(
            d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=256, dropout=0.0, init_std=0.3,
            decoder_start_token_id=1, forced_eos_token_id=None, **_TOKENS,
        ),
    ),
    "encoder, experts and decoder": (
        "SwitchTransformersConfig", "q",
        dict(
            d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1, num_heads=4, num_experts=2, dropout_rate=0.0, decoder_start_token_id=0,
            **{**_TOKENS, "bos_token_id": 0},
        ),
    ),
}  # fmt: skip
CONTEXTS = ["Is it so? Answer:", "A much longer question about something else, with a window behind it: ", "Why"]
CHOICES = [" yes", " no, it is not", " 7"]


@pytest.fixture(params=BASES)
def model_and_pool(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A tiny random model, and a pool of one adapter of it."""
    settings, target, sizes = BASES[request.param]
    config = getattr(transformers, settings)(**sizes)
    torch.manual_seed(0)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.3)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    byte_tokenizer(chat=False).save_pretrained(base)
    task = "SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM"
    lora = LoraConfig(
        r=2, target_modules=[target], task_type=task, init_lora_weights=False, fan_in_fan_out=target == "c_attn"
    )
    get_peft_model(model, lora).save_pretrained(adapter)
    pool = Pool.create(tmp_path / "pool", load_base(str(base)).identity)
    import_adapter(adapter, str(base), pool.path / "ex")
    pool.add("ex")
    return base, pool.path


def requests(kind: Any, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, args, i, ("t", i, 1)) for i, args in enumerate(arguments)]


def test_every_kind_of_request_has_the_harness_own_answer(model_and_pool: tuple[Path, Path]) -> None:
    base, pool = map(str, model_and_pool)
    ours = GliderLM(base=base, pool=pool, router="base", batch_size=2)
    theirs = HFLM(pretrained=base, device="cpu", batch_size=2, dtype="float32")
    assert ours.max_length == theirs.max_length
    pairs = requests("loglikelihood", *((context, choice) for context in CONTEXTS for choice in CHOICES), ("", "empty"))
    got, wanted = (model.loglikelihood(pairs, disable_tqdm=True) for model in (ours, theirs))
    assert [value for value, _ in got] == pytest.approx([value for value, _ in wanted], abs=2e-3, rel=1e-4)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in wanted]
    texts = requests("loglikelihood_rolling", ("A text of some length.",), ("a text beyond the context " * 12,))
    got, wanted = (model.loglikelihood_rolling(texts, disable_tqdm=True) for model in (ours, theirs))
    assert got == pytest.approx(wanted, rel=1e-4)
    if ours.encoder_decoder:
        return  # the harness counts the prompt's tokens among an encoder-decoder's new ones, and writes more than asked
    asked = requests("generate_until", *((context, {"until": ["\n\n"], "max_gen_toks": 6}) for context in CONTEXTS))
    got, wanted = (model.generate_until(asked, disable_tqdm=True) for model in (ours, theirs))
    assert got == wanted
