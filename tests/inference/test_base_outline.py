"""A base model known without its weights."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from glider.inference.base_model import load_base
from glider.inference.base_outline import outline_base


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_an_outline_has_the_identity_of_the_loaded_model(family: str, request: pytest.FixtureRequest):
    directory = str(request.getfixturevalue(f"{family}_directory"))
    outline, loaded = outline_base(directory), load_base(directory)
    assert outline is not None
    assert outline.identity == loaded.identity
    assert all(weight.is_meta for weight in outline.model.parameters())
    assert [name for name, _ in outline.model.named_modules()] == [name for name, _ in loaded.model.named_modules()]
    assert outline.tokenizer.pad_token == loaded.tokenizer.pad_token


def test_weights_in_several_files_are_found(llama_directory: Path, tmp_path: Path):
    shutil.copytree(llama_directory, tmp_path / "tiny-llama", ignore=shutil.ignore_patterns("*.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    model.save_pretrained(tmp_path / "tiny-llama", max_shard_size="100KB")
    assert (tmp_path / "tiny-llama" / "model.safetensors.index.json").exists()
    outline = outline_base(str(tmp_path / "tiny-llama"))
    assert outline is not None
    assert outline.identity == load_base(str(tmp_path / "tiny-llama")).identity
    assert outline.identity.hash == load_base(str(llama_directory)).identity.hash


@pytest.mark.parametrize("damage", ["no weights", "cut short", "no such directory"])
def test_what_files_do_not_tell_is_left_to_loading(llama_directory: Path, tmp_path: Path, damage: str):
    directory = tmp_path / "tiny-llama"
    if damage != "no such directory":
        shutil.copytree(llama_directory, directory)
        weights = directory / "model.safetensors"
        if damage == "no weights":
            weights.unlink()
        else:
            weights.write_bytes(weights.read_bytes()[:-10])
    assert outline_base(str(directory)) is None
