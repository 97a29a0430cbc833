"""How likely several continuations of several prompts are: every prompt is computed once, whatever their number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glider.layers.attach import Attached
from glider.routing.base import Condition

Ids = Sequence[int]
IGNORED = -100


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of one continuation (natural logarithm, summed over `tokens`); `greedy`: no token was likelier."""

    total: float
    tokens: int
    greedy: bool


def likelihoods(
    model: Any,
    attached: Attached,
    inputs: dict[str, torch.Tensor],
    continuations: Sequence[Sequence[Ids]],
    condition: Condition | None,
) -> list[list[Likelihood]]:
    """Score each row's continuations (token ids, at least one each), in float32.

    `inputs` are padded prompts, on the left for a decoder-only `model`, on the right for an encoder-decoder one;
    `condition` has a row for each. The continuations of all rows run as one batch on the prompts' cache (or encoder
    states), each with its own row's condition.
    """
    flat = [ids for row in continuations for ids in row]
    owner = torch.tensor([i for i, row in enumerate(continuations) for _ in row], device=model.device)
    labels = _padded(flat).to(model.device)  # (C, longest)
    with torch.inference_mode():
        score = _encoder_decoder if model.config.is_encoder_decoder else _decoder_only
        logits = score(model, attached, inputs, labels, owner, condition).float()  # (C, longest, vocabulary)
        wanted = labels.clamp(min=0)[..., None]
        values = logits.gather(-1, wanted)[..., 0] - logits.logsumexp(dim=-1)
        real = labels != IGNORED
        totals = values.masked_fill(~real, 0.0).sum(dim=-1).tolist()
        greedy = ((logits.argmax(dim=-1) == labels) | ~real).all(dim=-1).tolist()
    scored = (Likelihood(total, len(ids), best) for total, ids, best in zip(totals, flat, greedy, strict=True))
    return [[next(scored) for _ in row] for row in continuations]


def _padded(rows: Sequence[Ids]) -> torch.Tensor:
    labels = torch.full((len(rows), max(map(len, rows))), IGNORED)
    for label, ids in zip(labels, rows, strict=True):
        label[: len(ids)] = torch.tensor(ids)
    return labels


def _encoder_decoder(
    model: Any,
    attached: Attached,
    inputs: dict[str, torch.Tensor],
    labels: torch.Tensor,
    owner: torch.Tensor,
    condition: Condition | None,
) -> torch.Tensor:
    with attached.routing(condition):
        states = model.get_encoder()(**inputs).last_hidden_state  # (B, S, width)
    with attached.routing(_rows(condition, owner)):
        mask = inputs["attention_mask"][owner]
        return model(encoder_outputs=(states[owner],), attention_mask=mask, labels=labels.clamp(min=0)).logits


def _decoder_only(
    model: Any,
    attached: Attached,
    inputs: dict[str, torch.Tensor],
    labels: torch.Tensor,
    owner: torch.Tensor,
    condition: Condition | None,
) -> torch.Tensor:
    mask = inputs["attention_mask"]
    lengths = mask.sum(dim=-1, keepdim=True)
    padded = bool((mask == 0).any())  # positions are the model's own business where nothing is padded
    place: dict[str, torch.Tensor] = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if padded else {}
    with attached.routing(condition):
        prefix = model(**inputs, **place, use_cache=True, logits_to_keep=1)
    first = prefix.logits[owner]
    longest = labels.shape[1]
    if longest == 1:
        return first
    cache = prefix.past_key_values
    if len(owner) > 1 or len(mask) > 1:
        cache.batch_select_indices(owner)
    fed = labels[:, :-1]
    steps = torch.arange(longest - 1, device=fed.device)
    place = {"position_ids": lengths[owner] + steps} if padded else {}
    seen = torch.cat([mask[owner], (fed != IGNORED).long()], dim=1)
    with attached.routing(_rows(condition, owner)):
        rest = model(input_ids=fed.clamp(min=0), attention_mask=seen, past_key_values=cache, **place).logits
    return torch.cat([first, rest], dim=1)


def _rows(condition: Condition | None, owner: torch.Tensor) -> Condition | None:
    if condition is None:
        return None
    at = owner.to(condition.global_scores.device)
    return Condition(condition.global_scores[at], condition.alpha[at], condition.signal)
