"""PEFT adapters on disk, and what models with them say."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from glider.contribute.settings import TrainConfig
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel, load_base
from glider.layers.attach import attach
from glider.routing.base import routers

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
Edit = Callable[..., None]


def save_adapter(directory: Path, base: BaseModel, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A real PEFT adapter whose B is not zero; the base's modules are restored."""
    task = "SEQ_2_SEQ_LM" if base.model.config.is_encoder_decoder else "CAUSAL_LM"
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": task, **settings})
    peft_model = get_peft_model(base.model, config)
    chance = torch.Generator().manual_seed(3)
    for name, value in peft_model.named_parameters():
        if "lora_" in name:
            value.data = (torch.randn(value.shape, generator=chance) / value.shape[-1] ** 0.5).to(dtype)
    peft_model.save_pretrained(str(directory), save_embedding_layers=False)
    peft_model.unload()
    return directory


def content(directory: Path, files: tuple[str, ...] = ADAPTER_FILES) -> dict[str, bytes]:
    return {file: (directory / file).read_bytes() for file in files}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 259, (2, 11), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, **({"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {})).logits


def routed_logits(expert: Expert, base_directory: Path, pool_directory: Path, router: str) -> torch.Tensor:
    """Through a pool with this expert alone."""
    base = load_base(str(base_directory))
    pool = Pool.create(pool_directory, base.identity)
    shutil.copytree(expert.directory, pool_directory / expert.name)
    attach(base.model, pool.add(expert.name), routers.create(router))
    return logits(base.model)


def quick(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"gate_steps": 4, "batch_size": 4, "validation": 4, "learning_rate": 0.05, **changes})
