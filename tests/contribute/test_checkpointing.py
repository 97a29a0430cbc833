"""Recomputed activations: the same gradients, and fewer of them kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glider.contribute.checkpointing import checkpointed, recomputes
from glider.contribute.examples import EncodedRow
from glider.contribute.lora import add_lora, lora_parameters
from glider.contribute.targets import target_logits
from glider.errors import ConfigError
from glider.inference.base_model import load_base

PREFIX = [30 + i for i in range(12)]  # that all rows share
ROWS = [EncodedRow([*PREFIX, *[20 + i] * (3 + i)], [100 + i, 1]) for i in range(4)]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    logits, labels = target_logits(model, ROWS, 0, torch.device("cpu"))
    nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100).backward()
    values = {name: value.grad.clone() for name, value in lora_parameters(model).items() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    return values


def test_gradients_are_those_of_a_pass_that_keeps_everything(base_directory: Path) -> None:
    """Rows with a common beginning: its keys and values would be dropped without a word, the gradients be others."""
    model = add_lora(load_base(str(base_directory)).model, rank=2, alpha=4.0, sites="all-linear", seed=0)
    for name, value in lora_parameters(model).items():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    plain = gradients(model)
    with checkpointed(model):
        assert recomputes(model)
        again = gradients(model)
        assert not recomputes(model.eval())
        model.train()
    assert not recomputes(model)
    assert plain.keys() == again.keys() and plain
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-4)


def test_less_is_kept_for_the_backward_pass(llama_directory: Path) -> None:
    model = add_lora(load_base(str(llama_directory)).model, rank=2, alpha=4.0, sites="all-linear", seed=0)

    def kept() -> int:
        sizes: list[int] = []

        def pack(value: torch.Tensor) -> torch.Tensor:
            sizes.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            gradients(model)
        return sum(sizes)

    everything = kept()
    with checkpointed(model):
        assert kept() < everything


def test_a_model_that_cannot_is_refused(llama_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_base(str(llama_directory)).model
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match="Leave --checkpointing out"), checkpointed(model):
        pass
    with checkpointed(model, active=False):
        assert not recomputes(model.train())
