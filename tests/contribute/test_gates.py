"""Gate training changes what an adapter adds by sigmoid(v . x), touches nothing else and leaves no trace."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glider.contribute.gates import gated
from glider.contribute.lora import add_lora
from glider.inference.base_model import load_base


@pytest.fixture
def adapter(base_directory: Path) -> Any:
    """A tiny model with a LoRA adapter that does something."""
    peft_model = add_lora(load_base(str(base_directory)).model, rank=3, alpha=5.0, sites="all-linear", seed=0).eval()
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in peft_model.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=chance))
    return peft_model


def inputs(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, **({"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {})}


def module_of(adapter: Any, site: str) -> Any:
    return adapter.base_model.model.get_submodule(site)


def randomise(gates: dict[str, nn.Parameter]) -> None:
    chance = torch.Generator().manual_seed(3)
    for gate in gates.values():
        gate.data = torch.randn(gate.shape, generator=chance)


@torch.no_grad()
def test_a_gate_multiplies_the_adapters_part_of_the_output(adapter: Any):
    with gated(adapter) as gates:
        randomise(gates)
        for site, v in gates.items():
            module = module_of(adapter, site)
            x = torch.randn(2, 5, module.in_features)
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            wanted = module.base_layer(x) + torch.sigmoid(x @ v)[..., None] * (5.0 / 3) * (x @ a.T @ b.T)
            torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_fresh_gate_halves_the_adapter(adapter: Any):
    with gated(adapter) as gates:
        assert all((gate == 0).all() for gate in gates.values())
        site = next(iter(gates))
        module = module_of(adapter, site)
        x = torch.randn(5, module.in_features)
        halved = module(x)
    base = module.base_layer(x)
    torch.testing.assert_close(halved - base, (module(x) - base) / 2, rtol=1e-4, atol=1e-4)


def test_there_is_one_gate_a_site_of_its_input_width(adapter: Any):
    sites = {
        name.removeprefix("base_model.model."): module.in_features
        for name, module in adapter.named_modules()
        if hasattr(module, "lora_A")
    }
    with gated(adapter) as gates:
        assert {site: gate.numel() for site, gate in gates.items()} == sites
    assert not any("lm_head" in site for site in sites)


def test_only_gates_get_gradients(adapter: Any):
    with gated(adapter) as gates:
        randomise(gates)
        adapter(**inputs(adapter)).logits.square().mean().backward()
        for site, gate in gates.items():
            assert gate.grad is not None and gate.grad.abs().max() > 0, site
    assert [name for name, value in adapter.named_parameters() if value.grad is not None] == []


@torch.no_grad()
def test_everything_is_as_before_afterwards(adapter: Any):
    def state() -> tuple[torch.Tensor, list[tuple[str, bool]], int, bool]:
        return (
            adapter(**inputs(adapter)).logits,
            [(name, value.requires_grad) for name, value in adapter.named_parameters()],
            sum(len(module._forward_hooks) for module in adapter.modules()),
            adapter.training,
        )

    logits, *rest = state()
    with gated(adapter) as gates:
        randomise(gates)
        assert not torch.equal(adapter(**inputs(adapter)).logits, logits)
        assert not any(value.requires_grad for value in adapter.parameters())
    after, *rest_after = state()
    assert torch.equal(after, logits)
    assert rest_after == rest
    assert any(requires for _, requires in rest[0])


def test_a_failure_inside_restores_everything_too(adapter: Any):
    before = {name: value.requires_grad for name, value in adapter.named_parameters()}
    with pytest.raises(RuntimeError, match="power cut"), gated(adapter):
        raise RuntimeError("power cut")
    assert {name: value.requires_grad for name, value in adapter.named_parameters()} == before
    assert not any(module._forward_hooks for module in adapter.modules())


def test_gates_are_float32_on_a_bfloat16_base(llama_directory: Path):
    base = load_base(str(llama_directory), dtype=torch.bfloat16)
    adapter = add_lora(base.model, rank=2, alpha=1.0, sites="all-linear", seed=0)
    with gated(adapter) as gates:
        randomise(gates)
        assert {gate.dtype for gate in gates.values()} == {torch.float32}
        assert torch.isfinite(adapter(**inputs(adapter)).logits).all()
