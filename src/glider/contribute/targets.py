"""The logits that training needs, and no others: where there is a target, with what rows share computed once."""

from collections.abc import Sequence
from typing import Any

import torch

from glider.contribute.checkpointing import recomputes
from glider.contribute.examples import EncodedRow, collate
from glider.inference.forward import accepts, decoder_inputs, decoder_tokens, last_logits
from glider.inference.sharing import Sharing
from glider.layers.caches import cache_after, with_cache
from glider.shapes import Float, Int, Tensor

_SHORTEST_PREFIX = 8  # tokens; a shorter one saves less than a second call costs


def target_logits(
    model: Any, rows: Sequence[EncodedRow], pad_id: int, device: torch.device
) -> tuple[Float[Tensor, "B L V"], Int[Tensor, "B L"]]:
    """Logits for a batch's targets and the labels they predict (-100 where a row has none): those of each row alone.

    Decoder-only rows mostly begin alike (a chat template's system turn): that prefix runs once for the batch, with its
    gradient, and all rows attend to its keys and values. Where the model gives something else so (`Sharing`), rows are
    padded together only, and where it minds padding too, those of one length run together. A pass that recomputes its
    activations keeps no cache (transformers drops it without an error), so it shares no prefix.
    """
    sharing = Sharing(model)
    encoder_decoder = model.config.is_encoder_decoder
    shared = [] if len(rows) < 2 or encoder_decoder or recomputes(model) else _shared_prefix(rows)
    if len(shared) >= _SHORTEST_PREFIX and sharing.allows("prefix", _width(rows, shared)):
        return _after_prefix(model, rows, shared, pad_id, device)
    lengths = [len(row.prompt) if encoder_decoder else len(row) for row in rows]
    if len(set(lengths)) > 1 and not sharing.allows("padding", max(lengths)):
        return _by_length(model, rows, lengths, pad_id, device)
    return _together(model, rows, pad_id, device)


def _together(
    model: Any, rows: Sequence[EncodedRow], pad_id: int, device: torch.device
) -> tuple[Float[Tensor, "B L V"], Int[Tensor, "B L"]]:
    """One batch, padded."""
    encoder_decoder = model.config.is_encoder_decoder
    collated = collate(rows, pad_id, encoder_decoder=encoder_decoder)
    if bool(collated["attention_mask"].all()):
        collated.pop("position_ids", None)  # the model's own, which need not begin with 0 (RoBERTa's do not)
    batch = _to(model, collated, device)
    labels = batch.pop("labels")
    if encoder_decoder:
        logits = model(**batch, **decoder_tokens(model, decoder_inputs(model, labels)), use_cache=False).logits
        return logits[:, -labels.shape[1] :], labels
    logits, _ = last_logits(model, labels.shape[1] + 1, **batch, use_cache=False)
    return logits[:, :-1], labels


def _by_length(
    model: Any, rows: Sequence[EncodedRow], lengths: Sequence[int], pad_id: int, device: torch.device
) -> tuple[Float[Tensor, "B L V"], Int[Tensor, "B L"]]:
    """Rows of one length at a time, in the order of the rows."""
    longest = max(len(row.target) for row in rows)
    by_row: dict[int, tuple[Tensor, Tensor]] = {}
    for length in sorted(set(lengths)):
        numbers = [i for i, one in enumerate(lengths) if one == length]
        logits, labels = _together(model, [rows[i] for i in numbers], pad_id, device)
        missing = longest - labels.shape[1]
        logits = torch.nn.functional.pad(logits, (0, 0, 0, missing))
        labels = torch.nn.functional.pad(labels, (0, missing), value=-100)
        by_row |= dict(zip(numbers, zip(logits, labels, strict=True), strict=True))
    in_order = [by_row[i] for i in range(len(rows))]
    return torch.stack([logits for logits, _ in in_order]), torch.stack([labels for _, labels in in_order])


def _after_prefix(
    model: Any, rows: Sequence[EncodedRow], shared: list[int], pad_id: int, device: torch.device
) -> tuple[Float[Tensor, "B L V"], Int[Tensor, "B L"]]:
    """The rest of every row on the keys and values of what they share."""
    ids = torch.tensor([shared], device=device)
    cache = cache_after(last_logits(model, 1, input_ids=ids, use_cache=True)[1])
    cache.batch_repeat_interleave(len(rows))
    rest = [EncodedRow(row.prompt[len(shared) :], row.target) for row in rows]
    batch = _to(model, collate(rest, pad_id, encoder_decoder=False), device)
    labels = batch.pop("labels")
    seen = batch["attention_mask"].new_ones(len(rows), len(shared))
    batch["attention_mask"] = torch.cat([seen, batch["attention_mask"]], dim=1)
    if "position_ids" in batch:
        batch["position_ids"] = batch["position_ids"] + len(shared)
    logits, _ = last_logits(model, labels.shape[1] + 1, **batch, **with_cache(model, cache), use_cache=True)
    return logits[:, :-1], labels


def _shared_prefix(rows: Sequence[EncodedRow]) -> list[int]:
    """The tokens all prompts begin with, short of any prompt's last token (which predicts the target)."""
    first, last = min(row.prompt for row in rows), max(row.prompt for row in rows)
    most = min(len(row.prompt) for row in rows) - 1
    length = 0
    while length < most and first[length] == last[length]:
        length += 1
    return first[:length]


def _width(rows: Sequence[EncodedRow], shared: list[int]) -> int:
    """Tokens of the longest row."""
    return len(shared) + max(len(row) - len(shared) for row in rows)


def _to(model: Any, batch: dict[str, Tensor], device: torch.device) -> dict[str, Any]:
    taken = batch if accepts(model, "position_ids") else {n: v for n, v in batch.items() if n != "position_ids"}
    return {name: tensor.to(device) for name, tensor in taken.items()}
