"""Step 2 of the protocol: one gate per site, trained with the adapter and the base frozen.

PHATGOOSE (arXiv 2402.05859, section 3.1): the adapter's part of a site's output is multiplied by sigmoid(v . x). It
needs the adapter and data only, so anybody's PEFT adapter can be given gates after the fact.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def gated(peft_model: Any, adapter: str = "default") -> Iterator[dict[str, nn.Parameter]]:
    """Multiply every LoRA site by sigmoid(v . x), v starting at zero; yields `{site: v}` to train.

    The gate multiplies `A x`, which by linearity is the same as multiplying the adapter's output. Everything else is
    frozen inside the block and everything is as before after it.
    """
    trainable = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    gates: dict[str, nn.Parameter] = {}
    hooks = []
    for name, module in peft_model.named_modules():
        lora_a = getattr(module, "lora_A", None)
        if isinstance(lora_a, nn.ModuleDict) and adapter in lora_a:
            site = name.removeprefix("base_model.model.")
            factor: Any = lora_a[adapter]
            gates[site] = nn.Parameter(torch.zeros(factor.in_features, device=factor.weight.device))
            hooks.append(factor.register_forward_hook(_gate_output(gates[site])))
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)


def _gate_output(gate: nn.Parameter) -> Any:
    def multiply(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        (x,) = inputs
        return output * torch.sigmoid(x.to(gate.dtype) @ gate).unsqueeze(-1).to(output.dtype)

    return multiply
