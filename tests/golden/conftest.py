"""The golden files in the published layout: those of the repository, laid out again, and all of them where they are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import T5Config, T5ForConditionalGeneration

INSIDE = Path(__file__).parent / "inside.safetensors"
PREFIX = "base_model.model."
EMBEDDINGS = "gpt-generated-instruction-nomic-embeddings/{}/checkpoints/nomic_instruction_embedding.pt"


@pytest.fixture(scope="session")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make_inside.py` kept, as the published files: adapters that add nothing where a site's own are left out."""
    folder = tmp_path_factory.mktemp("golden") / "official_layout"
    with safe_open(INSIDE, "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    (folder / "base_t5").mkdir(parents=True)
    (folder / "base_t5" / "config.json").write_text(about["config"], "utf8")
    (folder / "cases.json").write_text(about["cases"], "utf8")
    _save(folder / "base_t5_state_dict.pt", _base(folder, _part(tensors, "base.")))
    order = json.loads(about["cases"])["expert_order"]
    experts = [_whole_expert(_part(tensors, f"experts.{name}."), tensors["base.shared.weight"]) for name in order]
    for name, expert in zip(order, experts, strict=True):
        _save(folder / "p3-lora-checkpoints" / f"{name}_best.pt", expert)
    _save(folder / "phatgoose" / "best.pt", _phatgoose(experts))
    for version in ("t0-v3", "t0-v4"):
        _save(folder / EMBEDDINGS.format(version), _part(tensors, f"{version}."))
    save_file(_part(tensors, "inputs."), folder / "inputs.safetensors")
    for case in json.loads(about["cases"])["cases"]:
        save_file(_part(tensors, f"cases.{case}."), folder / f"{case}.safetensors")
    return folder


@pytest.fixture(scope="session", params=["inside", "whole"])
def layout(request: pytest.FixtureRequest) -> Path:
    """A directory in the published layout, each in turn."""
    if request.param == "inside":
        return request.getfixturevalue("inside")
    return request.getfixturevalue("shared") / "golden" / "official_layout"


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _base(folder: Path, encoder: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder with a decoder of any weights, which no number of the subset depends on."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config.from_pretrained(folder / "base_t5"))
    absent = model.load_state_dict(encoder, strict=False)
    assert not absent.unexpected_keys
    return model.state_dict()


def _whole_expert(tensors: dict[str, torch.Tensor], embedding: torch.Tensor) -> dict[str, torch.Tensor]:
    expert = {}
    for name in [name.removesuffix(".lora_gate.default") for name in tensors if name.endswith("gate.default")]:
        width = len(tensors[f"{name}.lora_gate.default"])
        expert[f"{PREFIX}{name}.lora_A.default.weight"] = tensors.get(
            f"{name}.lora_A.default.weight", torch.zeros(16, width)
        )
        expert[f"{PREFIX}{name}.lora_B.default.weight"] = tensors.get(
            f"{name}.lora_B.default.weight", torch.zeros(width, 16)
        )
        expert[f"{PREFIX}{name}.lora_gate.default"] = tensors[f"{name}.lora_gate.default"]
    for part in ("encoder", "decoder"):  # which the published files carry
        expert[f"{PREFIX}{part}.embed_tokens.weight"] = embedding
    return expert


def _phatgoose(experts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The same experts in PHATGOOSE's single file."""
    parts = {
        "lora_A.default.weight": "expert_lora.layer1",
        "lora_B.default.weight": "expert_lora.layer2",
        "lora_gate.default": "router.expert_embeddings",
    }
    file = {}
    for number, expert in enumerate(experts):
        for name, tensor in expert.items():
            site, _, part = name.removeprefix(PREFIX).partition(".lora_")
            if part:
                values = tensor if "gate" in part else tensor.T.contiguous()
                file[f"{site}._addons.{parts[f'lora_{part}']}__{number}"] = values
    return file


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
