"""A plan, and an adapter that it may import."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from glider.inference.base_model import load_base

from .drafts import Draft


@pytest.fixture
def draft(tmp_path: Path, llama_directory: Path) -> Draft:
    """A plan of two experts to train, `one` and `two`."""
    draft = Draft(tmp_path, llama_directory)
    for name in ("one", "two"):
        draft.plan["experts"].append({"name": name, "data": draft.rows(name, answer=name[0])})
    return draft


@pytest.fixture
def adapter(tmp_path: Path, llama_directory: Path) -> Path:
    """A PEFT adapter beside the plan, in `lora`."""
    torch.manual_seed(0)
    settings = LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(load_base(str(llama_directory)).model, settings).save_pretrained(
        str(tmp_path / "lora"), save_embedding_layers=False
    )
    return tmp_path / "lora"
