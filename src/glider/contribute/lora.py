"""Step 1 of the protocol: a LoRA adapter, trained by PEFT's own layers on a frozen base."""

import re
import warnings
from typing import Any

import torch
from torch import nn

from glider.errors import ConfigError
from glider.experts.expert import Expert
from glider.layers.widths import is_transposed, linear_widths


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
        fan_in_fan_out=_transposed(model),
        task_type=_task_type(model),
    )
    _require_linear(model, sites)
    leaves = _leaves(model)
    try:
        with warnings.catch_warnings():  # of patterns that PEFT itself writes for MoE blocks
            warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys", RuntimeWarning)
            peft_model = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    except ValueError as fault:  # a layer that its model reads past a pair, such as Mamba's out_proj
        raise _not_adapted(model, str(fault), [leaf for leaf in leaves if f"'{leaf}'" not in str(fault)]) from fault
    adapted: Any = peft_model.peft_config["default"]
    if adapted.target_parameters:
        named = ", ".join(sorted(adapted.target_parameters))
        reason = f"{named} too, which PEFT adapts as parameters inside of MoE blocks, not as layers"
        raise _not_adapted(model, reason, sorted(adapted.target_modules))
    return peft_model.train()


def lora_config(expert: Expert, model: Any) -> Any:
    """PEFT's settings for an expert that exists, site by site, from what its reader found; without dropout."""
    from peft import LoraConfig

    def exactly(site: str) -> str:
        return f"^{re.escape(site)}"

    layout = expert.layout
    alphas = {site: layout.alpha_at(site) for site in expert.sites}
    return LoraConfig(
        r=layout.rank,
        lora_alpha=layout.alpha,  # pyright: ignore[reportArgumentType]
        use_rslora=layout.use_rslora,
        target_modules=list(expert.sites),
        rank_pattern={exactly(site): pair.rank for site, pair in expert.sites.items() if pair.rank != layout.rank},
        alpha_pattern={exactly(site): alpha for site, alpha in alphas.items() if alpha != layout.alpha},  # pyright: ignore
        lora_dropout=0.0,
        inference_mode=True,
        fan_in_fan_out=any(is_transposed(model.get_submodule(site)) for site in expert.sites),
        task_type=_task_type(model),
    )


def lora_parameters(peft_model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable factors by name."""
    return {name: value for name, value in peft_model.named_parameters() if value.requires_grad}


def _transposed(model: nn.Module) -> bool:
    """Whether the model's linear layers hold their weights as (in, out): GPT-2's do, and PEFT wants to be told."""
    return any(is_transposed(module) for module in model.modules())


def _task_type(model: Any) -> Any:
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def _require_linear(model: nn.Module, sites: str | list[str]) -> None:
    """Refuse a choice of sites that names nothing, or modules that are not linear."""
    if sites == "all-linear":
        return
    selected = [(name, module) for name, module in model.named_modules() if name and _fits(name, sites)]
    other = [f"{name} ({type(module).__name__})" for name, module in selected if linear_widths(module) is None]
    if not selected or other:
        linear = next(name for name, module in model.named_modules() if linear_widths(module) is not None)
        raise ConfigError(
            f"sites that are linear layers, such as {linear}",
            f"{', '.join(other[:3])}" if other else f"nothing that fits {sites}",
            "Give --sites all-linear, a regular expression, or names.",
        )


def _leaves(model: nn.Module) -> list[str]:
    """Last parts of the names of the linear layers, without the output head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = (name for name, part in model.named_modules() if linear_widths(part) is not None and part is not head)
    return sorted({name.rpartition(".")[2] for name in linear})


def _not_adapted(model: nn.Module, reason: str, others: list[str]) -> ConfigError:
    """What is wrong with the sites, and others that work."""
    remedy = f"Name others by --sites {','.join(others)}." if others else "Take another base model."
    return ConfigError(f"sites that PEFT adapts in {type(model).__name__}", reason, remedy)


def _fits(name: str, sites: str | list[str]) -> bool:
    """As PEFT matches target modules: a regex on the whole name, or names at its end."""
    if isinstance(sites, str):
        return re.fullmatch(sites, name) is not None
    return any(name == site or name.endswith("." + site) for site in sites)
