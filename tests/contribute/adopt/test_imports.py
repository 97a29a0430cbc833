"""An imported adapter computes what PEFT computes, and its card says where it comes from."""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from glider.contribute.adopt import add_description, import_adapter
from glider.contribute.lora import lora_config
from glider.experts.expert import Expert
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import load_base

from .adapters import ADAPTER_FILES, content, logits, routed_logits, save_adapter

LLAMA = {
    "list": {"target_modules": ["q_proj", "v_proj"]},
    "regex": {"target_modules": r".*\.layers\.1\..*\.(up|down)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "rank and alpha patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 5},
        "alpha_pattern": {"q_proj": 32, "down_proj": 3},
    },
    "rslora": {"target_modules": ["q_proj", "o_proj"], "use_rslora": True, "rank_pattern": {"o_proj": 7}},
    "one layer only": {
        "target_modules": ["q_proj", "gate_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
}  # fmt: skip


T5 = {
    "list": {"target_modules": ["q", "v"]},
    "regex": {"target_modules": r"decoder\..*\.EncDecAttention\.(q|o)"},
    "all-linear": {"target_modules": "all-linear"},
    "rank and alpha patterns": {
        "target_modules": ["q", "wi_0", "wo"],
        "rank_pattern": {"wo": 1},
        "alpha_pattern": {"wi_0": 0.5},
    },
    "rslora": {"target_modules": ["k", "wi_1"], "use_rslora": True},
}


KINDS = [("llama", kind) for kind in LLAMA] + [("t5", kind) for kind in T5]


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_an_imported_adapter_computes_what_peft_computes(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, kind: str
):
    base_directory: Path = request.getfixturevalue(f"{family}_directory")
    settings = (LLAMA if family == "llama" else T5)[kind]
    source = save_adapter(tmp_path / "adapter", load_base(str(base_directory)), **settings)
    before = content(source)
    expert = import_adapter(source, str(base_directory), tmp_path / "ex")
    assert content(expert.directory) == before == content(source)

    base = load_base(str(base_directory))
    plain = logits(base.model)
    wanted = logits(PeftModel.from_pretrained(base.model, str(source)).eval())
    got = routed_logits(expert, base_directory, tmp_path / "pool", "single:ex")
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - plain).abs().max() > 0.1

    again = load_base(str(base_directory))  # the settings that gates are trained with
    settings: Any = lora_config(expert, again.model)
    rebuilt = PeftModel.from_pretrained(again.model, str(expert.directory), config=settings).eval()
    torch.testing.assert_close(logits(rebuilt), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_an_adapter_keeps_the_dtype_of_its_file(llama_directory: Path, tmp_path: Path, dtype: torch.dtype):
    source = save_adapter(tmp_path / "adapter", load_base(str(llama_directory)), dtype)
    assert {tensor.dtype for tensor in load_file(source / "adapter_model.safetensors").values()} == {dtype}
    expert = import_adapter(source, str(llama_directory), tmp_path / "ex")
    assert {factor.dtype for site in expert.sites for factor in expert.factors(site)} == {dtype}
    wanted = logits(PeftModel.from_pretrained(load_base(str(llama_directory)).model, str(source)).eval())
    got = routed_logits(expert, llama_directory, tmp_path / "pool", "single:ex")
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_only_the_layers_of_the_adapter_are_sites(llama_directory: Path, tmp_path: Path):
    source = save_adapter(tmp_path / "adapter", load_base(str(llama_directory)), **LLAMA["one layer only"])
    expert = import_adapter(source, str(llama_directory), tmp_path / "ex")
    assert sorted(expert.sites) == ["model.layers.1.mlp.gate_proj", "model.layers.1.self_attn.q_proj"]


def test_the_card_says_where_the_adapter_comes_from(adapter: Path, llama_directory: Path, tmp_path: Path):
    expert = import_adapter(adapter, str(llama_directory), tmp_path / "ex", task="say-x", licence="CC0-1.0")
    card, base = expert.card, load_base(str(llama_directory))
    assert (card.name, card.task, card.licence) == ("ex", "say-x", "CC0-1.0")
    assert card.base == base.identity
    assert card.prompt == PromptFormat.of(base.model, base.tokenizer)
    assert card.training["imported_from"] == "adapter"
    assert (card.description, card.embedder, expert.instruction) == (None, None, None)
    assert not any(site.has_gate for site in expert.sites.values())


def test_an_adapter_of_the_hub_is_remembered_by_its_id(
    adapter: Path, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The hub's cache calls the directory by a commit hash, which names nothing."""
    snapshot = tmp_path / "cache" / "snapshots" / ("0" * 40)
    shutil.copytree(adapter, snapshot)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **_: str(snapshot))
    expert = import_adapter("somebody/lora", str(llama_directory), tmp_path / "ex")
    assert expert.card.training["imported_from"] == "somebody/lora"


def test_other_files_of_the_directory_stay(expert: Expert):
    (expert.directory / "README.md").write_text("mine")
    add_description(expert.directory, "Say something.", "all-MiniLM-L6-v2")
    assert (expert.directory / "README.md").read_text() == "mine"


def test_an_import_reads_no_weights_that_it_does_not_need(
    adapter: Path, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = import_adapter(adapter, load_base(str(llama_directory)), tmp_path / "whole" / "ex")
    monkeypatch.setattr("glider.inference.base_model.load_base", None)
    lean = import_adapter(adapter, str(llama_directory), tmp_path / "lean" / "ex")
    files = (*ADAPTER_FILES, "card.json", "glider.safetensors")
    assert content(lean.directory, files) == content(whole.directory, files)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"target_modules": ".*q_proj"}, "leave out, and PEFT with them: 2 sites .*v_proj"),
        (
            {"target_modules": ".*_proj", "exclude_modules": ".*q_proj"},
            "leave out, and PEFT with them: 2 sites .*q_proj",
        ),
        ({"target_modules": r".*(?=q)q_proj"}, "may have pairs that its own settings leave out"),
        ({"target_modules": r".*\.self_attn\.(q|v)_proj"}, None),
        ({"target_modules": "all-linear"}, None),
    ],
)
def test_pairs_that_an_expression_leaves_out_are_told(
    llama_directory: Path, tmp_path: Path, settings: dict[str, Any], wanted: str | None
):
    """PEFT drops them without a word; only lists were looked at."""
    adapter = save_adapter(tmp_path / "adapter", load_base(str(llama_directory)), target_modules=["q_proj", "v_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text("utf8"))
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import_adapter(adapter, str(llama_directory), tmp_path / "expert")
    texts = [str(one.message) for one in caught if "leave out" in str(one.message)]
    assert len(texts) == (wanted is not None) and all(re.search(str(wanted), text) for text in texts)
