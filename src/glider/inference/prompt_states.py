"""What the base model itself makes of a text, read early: mean hidden states after an eighth of its layers."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from glider.experts.token_ids import token_ids
from glider.inference.base_model import BaseModel
from glider.shapes import Float, Int, Tensor

SHARE = 8  # read after one layer in so many
AT_ONCE = 8  # texts in a batch


class _Reached(Exception):
    """The layer that reads is reached; the rest of the model need not run."""


def prompt_states(base: BaseModel, texts: Sequence[str]) -> Float[Tensor, "B H"]:
    """Mean over a text's tokens of the hidden state after the first eighth of the layers, at unit length, float32.

    Of an encoder-decoder model the encoder reads. The caller sees to it that no experts are on.
    """
    rows = [token_ids(base.tokenizer, text) for text in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # little padding
    parts = [order[i : i + AT_ONCE] for i in range(0, len(order), AT_ONCE)]
    states = torch.cat([_read(base, [rows[i] for i in part]) for part in parts])
    return states[torch.tensor(order).argsort()]


def first_layer(model: Any, ids: Int[Tensor, "B S"]) -> Float[Tensor, "B S H"]:
    """What the first layer makes of token ids."""
    return _states(model, ids, torch.ones_like(ids), lambda layers: layers[0])


def _read(base: BaseModel, rows: Sequence[list[int]]) -> Float[Tensor, "B H"]:
    """One batch of token ids."""
    model, tokenizer = base.model, base.tokenizer
    width, pad = max(map(len, rows)), tokenizer.pad_token_id or 0
    device = next(model.parameters()).device
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    states = _states(model, ids, mask, lambda layers: layers[max(1, round(len(layers) / SHARE)) - 1])
    states = states.float() * mask[..., None]
    return torch.nn.functional.normalize(states.sum(dim=1) / mask.sum(dim=1, keepdim=True), dim=-1).cpu().clone()


def _states(
    model: Any, ids: Int[Tensor, "B S"], mask: Int[Tensor, "B S"], choose: Callable[[nn.ModuleList], nn.Module]
) -> Float[Tensor, "B S H"]:
    """The hidden states after one layer; those behind it do not run."""
    reader = model.get_encoder() if model.config.is_encoder_decoder else model.get_decoder()
    layers = next(part for part in reader.children() if isinstance(part, nn.ModuleList))
    seen: list[Tensor] = []
    reading = threading.get_ident()

    def read(_: Any, arguments: tuple, output: Any) -> None:
        if threading.get_ident() != reading:
            return  # another thread uses the same model
        seen.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    hook = choose(layers).register_forward_hook(read)
    try:
        with torch.inference_mode():
            reader(input_ids=ids, attention_mask=mask)
    except _Reached:
        pass
    finally:
        hook.remove()
    return seen[0]
