"""What cannot be imported is refused, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import pytest
import torch

from glider.contribute.adopt import import_adapter
from glider.errors import (
    ExpertError,
    GliderError,
)
from glider.inference.base_model import load_base

from .adapters import ADAPTER_FILES, Edit, save_adapter


def refused(source: Path, base: Path, *parts: str, error: type[GliderError] = ExpertError) -> None:
    """Importing raises an error that names all `parts`, and leaves nothing behind."""
    out = source.parent / "out" / "ex"
    with pytest.raises(error) as raised:
        import_adapter(source, str(base), out)
    for part in parts:
        assert part in str(raised.value)
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_a_repository_of_a_pickle_alone_is_refused(
    llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Only settings and safetensors are fetched, so that nothing else arrives."""
    (tmp_path / "snapshot").mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **_: str(tmp_path / "snapshot"))
    with pytest.raises(ExpertError, match=r"adapter_model\.safetensors in the repository somebody/lora.*pickle"):
        import_adapter("somebody/lora", str(llama_directory), tmp_path / "ex")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
    ],
    ids=["dora", "modules_to_save", "bias"],
)
def test_more_than_plain_lora_is_refused(llama_directory: Path, tmp_path: Path, settings: dict[str, Any], told: str):
    source = save_adapter(tmp_path / "adapter", load_base(str(llama_directory)), **settings)
    refused(source, llama_directory, told, "adapter_config.json")


def test_an_adapter_of_an_embedding_is_refused(llama_directory: Path, tmp_path: Path):
    source = save_adapter(tmp_path / "adapter", load_base(str(llama_directory)), target_modules=["embed_tokens"])
    refused(source, llama_directory, "adapter_model.safetensors", "lora_embedding")


def test_a_pickle_is_not_opened(adapter: Path, llama_directory: Path):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(adapter, llama_directory, "adapter_model.bin", "pickle")


def test_an_adapter_for_another_architecture_is_refused(adapter: Path, t5_directory: Path):
    refused(adapter, t5_directory, "model.layers.0", "tiny-t5", error=GliderError)


def test_an_adapter_of_another_width_is_refused(adapter: Path, llama_directory: Path, edit_tensors: Edit):
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    edit_tensors(adapter / "adapter_model.safetensors", lambda tensors: tensors.update({key: torch.ones(50, 4)}))
    refused(adapter, llama_directory, "32 -> 50", "32 -> 48", error=GliderError)


def test_an_adapter_of_the_class_with_pictures_is_told_the_class(
    adapter: Path, llama_directory: Path, edit_tensors: Edit
):
    """A base that transformers loads as its text alone has other names: that was an adapter for another base."""

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace(".layers.", ".language_model.layers.")] = tensors.pop(name)

    edit_tensors(adapter / "adapter_model.safetensors", rename)
    refused(adapter, llama_directory, "loaded as LlamaForCausalLM", "it would be model.layers.0", error=GliderError)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(adapter: Path, llama_directory: Path, edit_tensors: Edit, value: float):
    edit_tensors(
        adapter / "adapter_model.safetensors", lambda tensors: next(iter(tensors.values()))[0, :1].fill_(value)
    )
    refused(adapter, llama_directory, "adapter_model.safetensors", "finite")


def test_ranks_that_are_not_those_of_the_settings_are_refused(adapter: Path, llama_directory: Path, edit_json: Edit):
    edit_json(adapter / "adapter_config.json", r=5)
    refused(adapter, llama_directory, "rank 5", "rank 4")


@pytest.mark.parametrize("file", ADAPTER_FILES)
def test_a_missing_file_is_named(adapter: Path, llama_directory: Path, file: str):
    (adapter / file).unlink()
    refused(adapter, llama_directory, file)


@pytest.mark.parametrize("file", ADAPTER_FILES)
def test_a_link_out_of_the_adapter_is_refused(adapter: Path, llama_directory: Path, tmp_path: Path, file: str):
    """Otherwise the expert would carry a copy of whatever the stranger pointed at."""
    (adapter / file).rename(tmp_path / "elsewhere")
    (adapter / file).symlink_to(tmp_path / "elsewhere")
    refused(adapter, llama_directory, file, "link")


def test_an_existing_directory_is_not_touched(adapter: Path, llama_directory: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ExpertError, match="existing"):
        import_adapter(adapter, str(llama_directory), tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("name", ["two words", ".hidden", "x" * 200, "ex\n"])
def test_a_bad_name_is_refused(adapter: Path, llama_directory: Path, tmp_path: Path, name: str):
    with pytest.raises(ExpertError, match="a name of"):
        import_adapter(adapter, str(llama_directory), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("hub_id", ["nobody/no-such-adapter", "no/such/thing", "./nowhere", "../../nowhere"])
def test_what_cannot_be_reached_is_one_clear_error(llama_directory: Path, tmp_path: Path, hub_id: str):
    with pytest.raises(ExpertError) as raised:
        import_adapter(hub_id, str(llama_directory), tmp_path / "ex")
    assert hub_id in str(raised.value)
    assert list(tmp_path.iterdir()) == []
