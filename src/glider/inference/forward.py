"""Inputs and outputs of a plain forward pass of any transformers model."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from glider.errors import QueryError
from glider.shapes import Float, Int, Tensor


def plain_model(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def accepts(model: Any, name: str) -> bool:
    """Whether the model's forward pass has an argument of this name."""
    return name in inspect.signature(plain_model(model).forward).parameters


def positions(model: Any, mask: Int[Tensor, "B S"]) -> dict[str, Int[Tensor, "B S"]]:
    """`position_ids` of padded rows, for a model that takes them; others find them in the mask.

    Without padding the model computes the positions itself.
    """
    if not bool((mask == 0).any()) or not accepts(model, "position_ids"):
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def last_logits(model: Any, count: int, **inputs: Any) -> tuple[Float[Tensor, "B C V"], Any]:
    """Logits of the last `count` positions, and the pass's whole output."""
    limit = {"logits_to_keep": count} if accepts(model, "logits_to_keep") else {}
    output = model(**inputs, **limit)
    return output.logits[:, -count:], output


def start_token(model: Any) -> int:
    """The token that the decoder of an encoder-decoder model begins with, as `generate` has it.

    Raises `QueryError` for a model that names none.
    """
    model = plain_model(model)
    for settings in (getattr(model, "generation_config", None), model.config, model.config.get_text_config()):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = getattr(settings, name, None)
            token = token[0] if isinstance(token, list | tuple) and token else token
            if isinstance(token, int):
                return token
    expected = "a token for the decoder to begin with (decoder_start_token_id)"
    raise QueryError(expected, "a model that names none", "Set it in the model's generation_config.")


def decoder_inputs(model: Any, labels: Int[Tensor, "B L"], forced: bool = True) -> Int[Tensor, "B S"]:
    """What the decoder is fed to predict labels, by the logits of the last L positions: the token it starts with, the
    one that its settings force after it (BART's), then the labels but the last.

    So `generate` has it; without `forced` the labels follow the start. The families' own shifts differ (mBART's begins
    with the last token). Labels below 0 have no target behind them.
    """
    begin = [start_token(model)]
    settings = getattr(plain_model(model), "generation_config", None)
    token = getattr(settings, "forced_bos_token_id", None)
    begin += [token] if forced and isinstance(token, int) else []
    before = torch.tensor([begin], device=labels.device).expand(len(labels), -1)
    return torch.cat([before, labels[:, :-1].clamp(min=0)], dim=1)


def decoder_tokens(model: Any, fed: Int[Tensor, "C S"]) -> dict[str, Int[Tensor, "C S"]]:
    """A decoder's tokens as arguments of a pass, each of them seen: T5Gemma without a cache hides those that are the
    padding token, the first one of many models among them, and with a cache it does not."""
    seen = {"decoder_attention_mask": torch.ones_like(fed)} if accepts(model, "decoder_attention_mask") else {}
    return {"decoder_input_ids": fed, **seen}


def padded_left(rows: Sequence[Sequence[int]], device: torch.device) -> dict[str, Int[Tensor, "B S"]]:
    """Rows of tokens as a batch padded on the left by token 0; without a mask where all have one length."""
    ids, mask = _padded(rows, 0, left=True)
    batch = {"input_ids": ids.to(device)}
    return batch if bool(mask.all()) else {**batch, "attention_mask": mask.to(device)}


def padded(rows: Sequence[Sequence[int]], pad_id: int, model: Any) -> dict[str, torch.Tensor]:
    """Prompts in tokens as a batch: padded on the left for decoder-only models, else on the right."""
    ids, mask = _padded(rows, pad_id, left=not model.config.is_encoder_decoder)
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}


def _padded(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B S"]]:
    """Rows of tokens side by side, and the mask of those that are no padding."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(list(row))
        mask[number, place] = 1
    return ids, mask
