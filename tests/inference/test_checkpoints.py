"""What lies in a model's directory: the class that reads it, and the weights that it has."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from glider.contribute.adopt import import_adapter
from glider.errors import BaseModelError
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.spec import load
from glider.layers.widths import linear_layers

from ..conftest import byte_tokenizer
from ..families.sweep import tiny

IDS = torch.randint(3, 200, (1, 9), generator=torch.Generator().manual_seed(1))


def saved(directory: Path, family: str, kind: str) -> Path:
    """A tiny random model of a family, saved with a tokenizer."""
    base = directory / family
    tiny(family, kind).save_pretrained(base)
    byte_tokenizer(chat=False).save_pretrained(base)
    return base


@pytest.mark.parametrize(
    ("family", "kind", "targets"),
    [
        ("qwen2_audio", "seq2seq", r".*language_model.*\.(q_proj|up_proj)"),  # a decoder that hears
        ("inkling_mm_model", "image-text", r".*vision_tower.*projection"),  # whose layers have widths of tensors
    ],
)
def test_an_adapter_on_a_model_of_more_than_text_is_peft_s(tmp_path: Path, family: str, kind: str, targets: str):
    base = saved(tmp_path, family, kind)
    loaded = load_base(str(base))
    peft: Any = get_peft_model(loaded.model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    for name, value in peft.named_parameters():
        if "lora_B" in name:
            value.data.fill_(0.1)
    peft.save_pretrained(str(tmp_path / "adapter"))
    with torch.no_grad():
        wanted = peft.eval()(input_ids=IDS).logits
    pool = Pool.create(tmp_path / "pool", loaded.identity)
    import_adapter(tmp_path / "adapter", str(base), pool.path / "ex")
    pool.add("ex")
    model = load(str(base), pool.path, router="single:ex")
    with torch.no_grad(), model.routing("x"):
        torch.testing.assert_close(model.model(input_ids=IDS).logits, wanted, rtol=1e-4, atol=1e-4)


def test_a_layer_whose_widths_are_tensors_is_a_linear_one():
    layer = torch.nn.Linear(3, 2)
    layer.in_features, layer.out_features = torch.tensor(3), torch.tensor(2)  # pyright: ignore[reportAttributeAccessIssue]
    assert linear_layers(torch.nn.ModuleDict({"layer": layer, "other": torch.nn.ReLU()})) == ["layer"]


def test_a_checkpoint_that_lacks_weights_is_refused(llama_directory: Path, tmp_path: Path):
    """transformers draws them at random, others at every loading."""
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"1 of them absent, model\.layers\.0\.mlp\.up_proj\.weight first"):
        load_base(str(tmp_path / "base"))


def test_a_checkpoint_of_another_class_is_refused(tmp_path: Path):
    """Emu3's text class is the causal one of its configuration; none of its weights is named as in the whole model."""
    base = saved(tmp_path, "emu3", "image-text")
    with pytest.raises(BaseModelError, match="every weight of Emu3ForCausalLM"):
        load_base(str(base))
