"""Gradient checkpointing: the activations of a block are computed again in the backward pass, not kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glider.errors import ConfigError
from glider.inference.forward import plain_model


@contextmanager
def checkpointed(model: Any, active: bool = True) -> Iterator[None]:
    """Train a transformers model (or one that PEFT wrapped) so within the block, where it is `active`.

    Raises `ConfigError` for a model that cannot.
    """
    plain = plain_model(model)
    if not active:
        yield
        return
    if not getattr(plain, "supports_gradient_checkpointing", False):
        got = f"{type(plain).__name__}, which transformers does not checkpoint"
        raise ConfigError("a model with gradient checkpointing", got, "Leave --checkpointing out.")
    # transformers renamed both; the reentrant form wants an input with a gradient, and frozen embeddings give none
    enable = getattr(plain, "activation_checkpointing_enable", None) or plain.gradient_checkpointing_enable
    disable = getattr(plain, "activation_checkpointing_disable", None) or plain.gradient_checkpointing_disable
    enable({"use_reentrant": False})
    try:
        yield
    finally:
        disable()
        if getattr(plain, "_require_grads_hooks", None):
            plain.disable_input_require_grads()


def recomputes(model: Any) -> bool:
    """Whether a training pass drops what it would keep: then it has no cache of keys and values either."""
    return model.training and any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
