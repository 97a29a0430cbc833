"""The logits that training needs, and no others: where there is a target, with what rows share computed once."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from glider.contribute.examples import EncodedRow, collate
from glider.shapes import Float, Int, Tensor

_SHORTEST_PREFIX = 8  # tokens; a shorter one saves less than a second call costs


def target_logits(
    model: Any, rows: Sequence[EncodedRow], pad_id: int, device: torch.device
) -> tuple[Float[Tensor, "B L V"], Int[Tensor, "B L"]]:
    """Logits for a batch's targets and the labels they predict (-100 where a row has none).

    Decoder-only rows mostly begin alike (a chat template's system turn): that prefix runs once for the batch, with its
    gradient, and all rows attend to its keys and values. Causal attention makes this the same computation.
    """
    if model.config.is_encoder_decoder:
        batch = _to(collate(rows, pad_id, encoder_decoder=True), device)
        return model(**batch).logits, batch["labels"]
    shared = _shared_prefix(rows) if len(rows) > 1 else []
    cache = _prefix_cache(model, shared, len(rows), device) if len(shared) >= _SHORTEST_PREFIX else None
    if cache is not None:
        rows = [EncodedRow(row.prompt[len(shared) :], row.target) for row in rows]
    batch = _to(collate(rows, pad_id, encoder_decoder=False), device)
    labels = batch.pop("labels")
    kept = labels.shape[1] + 1
    if cache is not None:
        seen = batch["attention_mask"].new_ones(len(rows), len(shared))
        batch["attention_mask"] = torch.cat([seen, batch["attention_mask"]], dim=1)
        batch["position_ids"] = batch["position_ids"] + len(shared)
        batch["past_key_values"] = cache
    return model(**batch, use_cache=cache is not None, logits_to_keep=kept).logits[:, -kept:-1], labels


def _shared_prefix(rows: Sequence[EncodedRow]) -> list[int]:
    """The tokens all prompts begin with, short of any prompt's last token (which predicts the target)."""
    first, last = min(row.prompt for row in rows), max(row.prompt for row in rows)
    most = min(len(row.prompt) for row in rows) - 1
    length = 0
    while length < most and first[length] == last[length]:
        length += 1
    return first[:length]


def _prefix_cache(model: Any, prefix: list[int], rows: int, device: torch.device) -> DynamicCache | None:
    """Keys and values of a prefix for every row; None for a model whose cache is not plain keys and values."""
    ids = torch.tensor([prefix], device=device)
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.batch_repeat_interleave(rows)
    return cache


def _to(batch: dict[str, Tensor], device: torch.device) -> dict[str, Any]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
