"""A base model is known by its weights: one model in two precisions is one, another model never passes."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, T5ForConditionalGeneration

from glider.errors import BaseModelError
from glider.experts.base_identity import BaseIdentity, identify, require_same_base
from glider.inference.base_model import load_base


def llama(directory: Path, seed: int = 0, **changes: int) -> BaseIdentity:
    """The identity of a fresh random model with the settings of a tiny Llama, some of them changed."""
    config = LlamaForCausalLM.config_class.from_pretrained(str(directory), **changes)
    torch.manual_seed(seed)
    return identify(LlamaForCausalLM(config), f"llama-{seed}")


def test_precision_does_not_change_the_identity(base_directory: Path):
    whole, half = (load_base(str(base_directory), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}
    assert whole.identity.hash == half.identity.hash
    assert whole.identity.weight_hashes == half.identity.weight_hashes
    require_same_base(whole.identity, half.identity, "e0")


def test_a_model_saved_in_bfloat16_keeps_its_identity(base_directory: Path, tmp_path: Path):
    half = load_base(str(base_directory), dtype=torch.bfloat16)
    half.model.save_pretrained(tmp_path / "half")
    half.tokenizer.save_pretrained(tmp_path / "half")
    assert load_base(str(tmp_path / "half")).identity.hash == half.identity.hash


def test_the_same_weights_under_another_name_are_the_same_base(base_directory: Path):
    model = load_base(str(base_directory)).model
    here, there = identify(model, "here"), identify(model, "there")
    assert here != there
    assert here.hash == there.hash
    require_same_base(here, there, "e0")


def test_another_seed_is_another_base(llama_directory: Path):
    assert llama(llama_directory, seed=0).hash != llama(llama_directory, seed=1).hash
    assert llama(llama_directory, seed=0).config_hash == llama(llama_directory, seed=1).config_hash


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"num_hidden_layers": 3}, {"intermediate_size": 96}])
def test_another_architecture_is_another_base(llama_directory: Path, change: dict[str, int]):
    assert llama(llama_directory).config_hash != llama(llama_directory, **change).config_hash


def test_an_encoder_decoder_of_another_depth_is_another_base(t5_directory: Path):
    config = T5ForConditionalGeneration.config_class.from_pretrained(str(t5_directory), num_decoder_layers=2)
    other = identify(T5ForConditionalGeneration(config), "deeper")
    assert other.config_hash != load_base(str(t5_directory)).identity.config_hash


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_a_change_of_an_early_matrix_is_seen(llama_directory: Path, name: str):
    base = load_base(str(llama_directory))
    with torch.no_grad():
        base.model.get_parameter(name).mul_(1.1)
    assert identify(base.model, "changed").hash != base.identity.hash


def test_the_id_of_a_local_base_is_no_path(llama_directory: Path):
    assert load_base(f"{llama_directory}/").identity.model_id == "tiny-llama"


def test_a_refusal_names_owner_bases_and_reason(llama_directory: Path):
    mine, seed = llama(llama_directory, seed=0), llama(llama_directory, seed=1)
    with pytest.raises(BaseModelError, match="other weights") as raised:
        require_same_base(mine, seed, "expert e7")
    for part in ("expert e7", "llama-0", "llama-1", mine.hash, seed.hash, "--base llama-0"):
        assert part in str(raised.value)


def test_a_refusal_tells_another_architecture_from_other_weights(llama_directory: Path):
    with pytest.raises(BaseModelError, match="another architecture"):
        require_same_base(llama(llama_directory), llama(llama_directory, hidden_size=64), "pool p")


def test_models_without_a_common_weight_are_not_the_same(llama_directory: Path):
    mine = llama(llama_directory)
    renamed = mine.model_copy(update={"weight_hashes": {f"x.{k}": v for k, v in mine.weight_hashes.items()}})
    with pytest.raises(BaseModelError):
        require_same_base(mine, renamed, "e0")


def test_weights_that_one_side_lacks_are_left_out_of_the_comparison(llama_directory: Path):
    mine = llama(llama_directory)
    kept = dict(list(mine.weight_hashes.items())[:2])
    require_same_base(mine, mine.model_copy(update={"weight_hashes": kept}), "a quantised copy")
