"""Adapters that mean harm: each was a traceback, took the disk, or put another's file into the card."""

import json
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glider.contribute.adopt import adopt, import_adapter
from glider.contribute.settings import TrainConfig
from glider.errors import BaseModelError, ExpertError, GliderWarning
from glider.experts.peft_format import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from glider.files import headers

EMBEDDING = "base_model.model.model.embed_tokens.weight"


@pytest.mark.parametrize("name", [[], {}, ["default"], None, 5], ids=repr)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.json"])
def test_the_name_of_a_template_may_be_anything(
    adapter: Path, llama_directory: Path, tmp_path: Path, file: str, name: Any
) -> None:
    """A list or an object as a name was `unhashable type`."""
    (adapter / file).write_text(json.dumps({"chat_template": [{"name": name, "template": "x"}]}), "utf8")
    with pytest.warns(GliderWarning, match="none of them the default"):
        import_adapter(adapter, str(llama_directory), tmp_path / "ex")


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json", "chat_template.json"])
def test_a_link_puts_no_other_file_into_the_card(
    adapter: Path, llama_directory: Path, tmp_path: Path, file: str
) -> None:
    """A private key was the chat template of the card, which is pushed."""
    (tmp_path / "key").write_text(json.dumps({"chat_template": "a private key"}), "utf8")
    (adapter / file).symlink_to(tmp_path / "key")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        expert = import_adapter(adapter, str(llama_directory), tmp_path / "ex")
    assert "private" not in (expert.directory / "card.json").read_text("utf8")
    assert not any("private" in str(one.message) for one in shown)
    assert file != "chat_template.jinja" or any("a link out of the directory" in str(one.message) for one in shown)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_a_copy_of_the_embedding_in_whole_numbers_is_refused(
    adapter: Path, llama_directory: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    embedding = load_file(llama_directory / "model.safetensors")["model.embed_tokens.weight"]
    pairs = load_file(adapter / ADAPTER_WEIGHTS_FILE)
    save_file({**pairs, EMBEDDING: embedding.to(dtype)}, adapter / ADAPTER_WEIGHTS_FILE, {"format": "pt"})
    with pytest.raises(ExpertError, match="floating-point values"):
        import_adapter(adapter, str(llama_directory), tmp_path / "ex")


@pytest.mark.parametrize("name", [EMBEDDING, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "x"])
def test_a_file_of_holes_is_refused_before_it_is_copied(
    adapter: Path, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Eight gigabytes that took no place on a disk took them all, and half a minute."""
    size = 1 << 33
    entry = {"dtype": "F32", "shape": [size // 8, 2], "data_offsets": [0, size]}
    header = json.dumps({name: entry}).encode()
    (adapter / ADAPTER_WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(adapter / ADAPTER_WEIGHTS_FILE, 8 + len(header) + size)
    monkeypatch.setattr("glider.contribute.adopt.copy_file", lambda *paths: pytest.fail("copied"))
    with pytest.raises(ExpertError, match=f"at most .* values in {name}"):
        import_adapter(adapter, str(llama_directory), tmp_path / "ex")


def test_a_large_header_is_parsed_once(
    adapter: Path, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 99,000 tensors, ten megabytes, took six seconds: a second each of six times."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"base_model.model.m{i}.lora_A.weight": empty for i in range(4000)}).encode()
    (adapter / ADAPTER_WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(header)) + header)
    parse, sizes = headers._parse, []
    monkeypatch.setattr(headers, "_parse", lambda content, *rest: sizes.append(len(content)) or parse(content, *rest))
    with pytest.raises(ExpertError, match="a pair A"):
        import_adapter(adapter, str(llama_directory), tmp_path / "ex")
    assert sizes.count(len(header)) == 1


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "~nobody-of-this-name"])
def test_the_home_of_nobody_is_no_base(adapter: Path, tmp_path: Path, name: str) -> None:
    """`expanduser` raised a `RuntimeError`."""
    settings = json.loads((adapter / ADAPTER_CONFIG_FILE).read_text("utf8"))
    (adapter / ADAPTER_CONFIG_FILE).write_text(json.dumps(settings | {"base_model_name_or_path": name}), "utf8")
    with pytest.raises(BaseModelError, match="no such directory"):
        adopt(adapter, None, tmp_path / "ex", TrainConfig.parse())
