"""Ways to come by a routed model: what is loaded already, transformers' own arguments, names, 16 bits, images."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    FSMTConfig,
    LEDConfig,
    ProphetNetConfig,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    ReformerConfig,
    XLNetConfig,
)

from glider.contribute.adopt import import_adapter
from glider.errors import BaseModelError, ConfigError, PoolError, RouterError
from glider.experts.base_identity import identify, require_same_base
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.spec import load
from glider.layers.attach import attach

from ..conftest import byte_tokenizer
from ..families.sweep import tiny

QUESTION = "What is two and two?"


@pytest.fixture
def pool(make_pool: Any, llama_directory: Path) -> Pool:
    return make_pool(llama_directory, experts=2)


def test_a_model_that_is_loaded_serves_as_the_base(pool: Pool, llama_directory: Path):
    wanted = load(str(llama_directory), pool.path, router="phatgoose").generate([QUESTION], max_new_tokens=6)
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    assert load(model, pool.path, router="phatgoose").generate([QUESTION], max_new_tokens=6) == wanted
    other = AutoModelForCausalLM.from_pretrained(llama_directory)
    other.name_or_path = ""
    with pytest.raises(BaseModelError, match="tokenizer"):
        load(other, pool.path)
    tokenizer = AutoTokenizer.from_pretrained(llama_directory)
    with_tokenizer = load(other, pool.path, tokenizer=tokenizer, router="phatgoose")
    assert with_tokenizer.generate([QUESTION], max_new_tokens=6) == wanted


def test_what_a_loaded_model_cannot_be_given_is_refused(pool: Pool, llama_directory: Path):
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    with pytest.raises(ConfigError, match="dtype"):
        load(model, pool.path, dtype="bfloat16")
    with pytest.raises(BaseModelError, match="Linear"):
        load(torch.nn.Linear(2, 2), pool.path)
    with pytest.raises(ConfigError, match="tokenizer"):
        load(str(llama_directory), pool.path, tokenizer=object())


def test_a_pool_in_the_place_of_a_base_is_told(pool: Pool):
    for place in ("demo", str(pool.path), pool.path):
        with pytest.raises(ConfigError, match=r"load\(pool="):
            load(place)


def test_a_loaded_model_of_other_weights_is_refused(pool: Pool, other_llama_directory: Path):
    with pytest.raises(BaseModelError, match="other weights"):
        load(AutoModelForCausalLM.from_pretrained(other_llama_directory), pool.path)


def test_arguments_of_transformers_pass_through(pool: Pool, llama_directory: Path):
    model = load(str(llama_directory), pool.path, attn_implementation="eager", router="phatgoose", top_k=1)
    assert model.model.config._attn_implementation == "eager"
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    with pytest.raises(ConfigError, match="trust_remote_code"):
        load(str(llama_directory), pool.path, trust_remote_code=True)


def test_a_pool_is_attached_by_its_path_and_a_router_by_its_name(pool: Pool, llama_directory: Path):
    ids = torch.randint(3, 259, (1, 9), generator=torch.Generator().manual_seed(0))
    base = load_base(str(llama_directory)).model
    with torch.no_grad():
        attach(base, str(pool.path), "phatgoose(top_k=1)")
        by_name = base(input_ids=ids).logits
        other = load_base(str(llama_directory)).model
        attached = attach(other, pool.path, "single:e1")
        single = other(input_ids=ids).logits
        attached.detach()
        assert not torch.equal(by_name, single)
        assert not torch.equal(other(input_ids=ids).logits, single)


def test_a_pool_is_not_attached_by_path_to_another_base(pool: Pool, other_llama_directory: Path):
    with pytest.raises(BaseModelError, match="other weights"):
        attach(load_base(str(other_llama_directory)).model, pool.path, "phatgoose")
    with pytest.raises(PoolError):
        attach(load_base(str(other_llama_directory)).model, pool.path / "e0", "phatgoose")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_base_in_16_bits_is_the_same_base(llama_directory: Path, other_llama_directory: Path, dtype: torch.dtype):
    """Values that float16 cannot hold made another base of it."""
    model = load_base(str(llama_directory)).model
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(torch.logspace(-9, 0, weight.shape[-1]))
    whole = identify(model, "whole")
    half = identify(model.to(dtype), "half")
    require_same_base(whole, half, "an expert")
    require_same_base(half, whole, "an expert")
    other = load_base(str(other_llama_directory)).model
    with pytest.raises(BaseModelError, match="other weights"):
        require_same_base(whole, identify(other.to(dtype), "other"), "an expert")


def test_an_identity_without_samples_is_read(llama_directory: Path):
    identity = load_base(str(llama_directory)).identity
    old = identity.model_copy(update={"samples": {}})
    require_same_base(old, identity, "a pool")
    assert old.hash == identity.hash


def test_a_routed_model_moves_with_its_experts(pool: Pool, llama_directory: Path):
    model = load(str(llama_directory), pool.path, p=0.1)
    before = model.generate([QUESTION], max_new_tokens=6)
    assert model.to(torch.float64) is model
    assert model.dtype == torch.float64
    assert model.generate([QUESTION], max_new_tokens=6)[0].text == before[0].text
    assert model.to(torch.float32).generate([QUESTION], max_new_tokens=6) == before
    with model.routing(QUESTION), pytest.raises(RouterError, match="Leave it first"):
        model.to("cpu")
    single = load(str(llama_directory), pool.path, router="single:e0")
    single.fold()
    with pytest.raises(RouterError, match="unfold"):
        single.to("cpu")


def test_copies_and_pickles_are_refused_in_one_line(pool: Pool, llama_directory: Path):
    model = load(str(llama_directory), pool.path, p=0.1)
    for part in (model, model.model, model.attached):
        for make in (copy.deepcopy, pickle.dumps):
            with pytest.raises(RouterError, match="to copy or to pickle"):
                make(part)
    assert isinstance(copy.deepcopy(model.detach()), torch.nn.Module)


def test_a_model_of_images_and_text_routes_its_language_model(tmp_path: Path):
    torch.manual_seed(0)
    text: Any = dict(  # noqa: C408
        vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=512, eos_token_id=1, pad_token_id=0, bos_token_id=None,
                rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
                initializer_range=0.3)  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = Qwen2VLConfig(text_config=text, vision_config=vision)
    base = tmp_path / "tiny-vl"
    Qwen2VLForConditionalGeneration(config).eval().save_pretrained(base)
    byte_tokenizer(chat=True).save_pretrained(base)
    loaded = load_base(str(base))
    targets = r".*language_model.*\.(q_proj|up_proj)"
    peft = get_peft_model(loaded.model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    draw = torch.Generator().manual_seed(1)
    for name, value in peft.named_parameters():
        if "lora_" in name:
            value.data = torch.randn(value.shape, generator=draw) / value.shape[-1] ** 0.5
    peft.save_pretrained(str(tmp_path / "adapter"))
    ids = torch.randint(3, 200, (1, 9), generator=draw)
    with torch.no_grad():
        wanted = peft.eval()(input_ids=ids).logits
    pool = Pool.create(tmp_path / "pool", loaded.identity)
    import_adapter(tmp_path / "adapter", str(base), pool.path / "ex")
    pool.add("ex")
    model = load(str(base), pool.path, router="single:ex")
    with torch.no_grad(), model.routing(QUESTION):
        torch.testing.assert_close(model.model(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-4)
    alone = [model.generate([prompt], max_new_tokens=5)[0].text for prompt in (QUESTION, "a")]
    assert [one.text for one in model.generate([QUESTION, "a"], max_new_tokens=5)] == alone
    assert [one.text for one in model.generate_batch([QUESTION, "a"], max_new_tokens=5)] == alone
    assert model.score(QUESTION, ["yes", "no"])[0].log_likelihood < 0


_BERT = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**_BERT),
        XLNetConfig(vocab_size=259, d_model=32, n_layer=2, n_head=4, d_inner=48, initializer_range=0.3, dropout=0.0),
    ],
    ids=["bert", "xlnet"],
)
def test_a_model_that_reads_ahead_is_refused_by_what_it_does(tmp_path: Path, config: Any):
    """Masked and permuted language models load as causal ones; their likelihood of a token knew the token."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    byte_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    with pytest.raises(BaseModelError, match=r"tokens see those behind them too|tokens first"):
        load_base(str(tmp_path / "base"))


def test_a_model_that_no_cache_can_be_made_for_is_refused(tmp_path: Path):
    """BLT's configuration names no number of layers, which transformers makes a cache by."""
    tiny("blt", "causal").save_pretrained(tmp_path / "base")
    byte_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    with pytest.raises(BaseModelError, match=r"every pass with a cache fails: .*num_hidden_layers"):
        load_base(str(tmp_path / "base"))


_FSMT = FSMTConfig(
    langs=["en", "de"], src_vocab_size=259, tgt_vocab_size=259, d_model=32, encoder_layers=1, decoder_layers=1,
    encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
)  # fmt: skip
_LED = LEDConfig(  # which pads its input to whole windows
    vocab_size=259, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, attention_window=32, init_std=0.3,
    max_encoder_position_embeddings=256, max_decoder_position_embeddings=256,
)  # fmt: skip


@pytest.mark.parametrize("config", [_FSMT, _LED], ids=["fsmt", "led"])
def test_an_encoder_decoder_that_takes_tokens_first_is_refused(tmp_path: Path, config: Any):
    """Its tokens would be routed by other rows' queries, without a word where the numbers divide."""
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "base")
    byte_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    with pytest.raises(BaseModelError, match="take the tokens first"):
        load_base(str(tmp_path / "base"))


def test_a_decoder_that_looks_at_how_many_tokens_follow_is_refused(tmp_path: Path):
    """ProphetNet's scores of a choice were 2.7 off what it says step by step."""
    torch.manual_seed(0)
    config = ProphetNetConfig(
        vocab_size=259, hidden_size=32, encoder_ffn_dim=48, decoder_ffn_dim=48, num_encoder_layers=1,
        num_decoder_layers=1, num_encoder_attention_heads=4, num_decoder_attention_heads=4, init_std=0.3,
    )  # fmt: skip
    config.is_encoder_decoder, config.is_decoder = False, True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    byte_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    with pytest.raises(BaseModelError, match="how many tokens follow"):
        load_base(str(tmp_path / "base"))


def test_a_model_that_hashes_tokens_into_chunks_is_refused(tmp_path: Path):
    """Reformer's hashes are drawn at every pass, and its chunks are cut from all tokens of the row."""
    torch.manual_seed(0)
    config = ReformerConfig(
        vocab_size=259, hidden_size=32, attention_head_size=8, num_attention_heads=4, feed_forward_size=48,
        attn_layers=["local", "lsh"], axial_pos_embds=False, max_position_embeddings=512, is_decoder=True,
        local_attn_chunk_length=16, lsh_attn_chunk_length=16, initializer_range=0.3,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    byte_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    with pytest.raises(BaseModelError, match="how many tokens follow"):
        load_base(str(tmp_path / "base"))


def test_a_bert_that_is_a_decoder_is_a_language_model(tmp_path: Path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(BertConfig(**_BERT, is_decoder=True)).save_pretrained(tmp_path / "base")
    byte_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    assert load_base(str(tmp_path / "base")).identity.model_id == "base"
