"""Random experts in the published layouts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

NAMES = ("p3xsum", "p3agnews", "p3yelp")
Tensors = dict[str, torch.Tensor]


def modules(model: Any) -> dict[str, torch.nn.Linear]:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return {name: module for name, module in linear.items() if name != "lm_head"}


def random_experts(model: Any, count: int = 3, rank: int = 2, unit_gates: bool = False) -> list[Tensors]:
    """Experts as GLIDER's files hold them, without embed_tokens."""
    chance = torch.Generator().manual_seed(7)
    experts = []
    for _ in range(count):
        tensors = {}
        for site, module in modules(model).items():
            gate = torch.randn(module.in_features, generator=chance)
            prefix = f"base_model.model.{site}"
            tensors[f"{prefix}.lora_A.default.weight"] = torch.randn(rank, module.in_features, generator=chance)
            tensors[f"{prefix}.lora_B.default.weight"] = torch.randn(module.out_features, rank, generator=chance)
            tensors[f"{prefix}.lora_gate.default"] = gate / gate.norm() if unit_gates else gate
        experts.append(tensors)
    return experts


def save_glider(experts: Sequence[Tensors], directory: Path, names: Sequence[str] = NAMES) -> Path:
    directory.mkdir()
    for name, tensors in zip(names, experts, strict=True):
        torch.save(tensors, directory / f"{name}_best.pt")
    return directory


def as_phatgoose(experts: Sequence[Tensors]) -> Tensors:
    renamed = {"lora_A.default.weight": "expert_lora.layer1", "lora_B.default.weight": "expert_lora.layer2"}
    renamed["lora_gate.default"] = "router.expert_embeddings"
    tensors = {}
    for number, expert in enumerate(experts):
        for key, value in expert.items():
            site, dot, part = key.removeprefix("base_model.model.").partition(".lora_")
            assert dot
            value = value if "gate" in part else value.T.contiguous()
            tensors[f"{site}._addons.{renamed['lora_' + part]}__{number}"] = value
    return tensors


def save_phatgoose(experts: Sequence[Tensors], file: Path, **more: torch.Tensor) -> Path:
    torch.save({**as_phatgoose(experts), **more}, file)
    return file


def left_behind(directory: Path, *known: str) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name not in known)
