"""Step 1 of the protocol: a LoRA adapter, trained by PEFT's own layers on a frozen base."""

from typing import Any

import torch
from torch import nn


def add_lora(model: nn.Module, rank: int, alpha: float, sites: str | list[str], seed: int) -> Any:
    """Put a fresh PEFT LoRA on a base model; only its factors require gradients.

    `sites` is PEFT's `target_modules`: "all-linear" (every linear layer but the output head), a regular expression,
    or a list of module names. Returns the `PeftModel`.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  PEFT divides by r, and a fraction is as good
        target_modules=sites,
        lora_dropout=0.0,
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",  # pyright: ignore
    )
    peft_model = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    return peft_model.train()


def lora_parameters(peft_model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable factors by name."""
    return {name: value for name, value in peft_model.named_parameters() if value.requires_grad}
