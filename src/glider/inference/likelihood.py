"""How likely several continuations of several prompts are: every prompt is computed once, whatever their number."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch

from glider.errors import QueryError
from glider.layers.attach import Attached, Generation
from glider.routing.base import support_of
from glider.routing.condition import Condition

Ids = Sequence[int]
IGNORED = -100
WORTHWHILE = 64  # tokens that are saved by computing a common beginning once, for which a pass more is made


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
    condition: Condition,
    generation: Generation | None = None,
) -> list[list[Likelihood]]:
    """Score each row's continuations (token ids, at least one each), in float32.

    `inputs` are padded prompts, on the left for a decoder-only `model`, on the right for an encoder-decoder one;
    `condition` has a row for each, made for `generation` (by default the current one). The continuations of all rows
    run as one batch on the prompts' cache (or encoder states), each with its own row's condition. Raises `QueryError`
    for likelihoods that are not finite.
    """
    with attached.hold(generation) as held:
        return _likelihoods(model, _Routed(attached, held), inputs, continuations, condition)


@dataclass(frozen=True)
class _Routed:
    """Passes by one generation of an attached pool."""

    attached: Attached
    generation: Generation

    def __call__(self, condition: Condition) -> AbstractContextManager[None]:
        return self.attached.routing(condition, generation=self.generation)

    @property
    def shares(self) -> bool:
        """Whether what several rows begin with may be computed once."""
        support = support_of(self.generation.router)
        return support.cache and support.chunked


def _likelihoods(
    model: Any,
    routed: _Routed,
    inputs: dict[str, torch.Tensor],
    continuations: Sequence[Sequence[Ids]],
    condition: Condition,
) -> list[list[Likelihood]]:
    flat = [ids for row in continuations for ids in row]
    owner = torch.tensor([i for i, row in enumerate(continuations) for _ in row], device=model.device)
    labels = _padded(flat).to(model.device)  # (C, longest)
    with torch.inference_mode():
        score = _encoder_decoder if model.config.is_encoder_decoder else _decoder_only
        logits = score(model, routed, inputs, labels, owner, condition).float()  # (C, longest, vocabulary)
        wanted = labels.clamp(min=0)[..., None]
        values = logits.gather(-1, wanted)[..., 0] - logits.logsumexp(dim=-1)
        real = labels != IGNORED
        totals = values.masked_fill(~real, 0.0).sum(dim=-1).tolist()
        if not all(map(isfinite, totals)):
            remedy = "Run the model in float32 or bfloat16, and check the experts (`glider pool verify`)."
            raise QueryError("finite log-likelihoods", "ones that are not (an overflow, or weights of NaN)", remedy)
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
    routed: _Routed,
    inputs: dict[str, torch.Tensor],
    labels: torch.Tensor,
    owner: torch.Tensor,
    condition: Condition,
) -> torch.Tensor:
    with routed(condition):
        states = model.get_encoder()(**inputs).last_hidden_state  # (B, S, width)
    with routed(condition.rows(owner)):
        mask = inputs["attention_mask"][owner]
        return model(encoder_outputs=(states[owner],), attention_mask=mask, labels=labels.clamp(min=0)).logits


def _decoder_only(
    model: Any,
    routed: _Routed,
    inputs: dict[str, torch.Tensor],
    labels: torch.Tensor,
    owner: torch.Tensor,
    condition: Condition,
) -> torch.Tensor:
    longest = labels.shape[1]
    first, cache, mask = _prompts(model, routed, inputs, condition, longest - 1)
    if longest == 1:
        return first[owner]
    if len(owner) > 1 or len(mask) > 1:
        cache.batch_select_indices(owner)
    fed = labels[:, :-1]
    steps = torch.arange(longest - 1, device=fed.device)
    place = {"position_ids": mask.sum(dim=-1, keepdim=True)[owner] + steps} if _padded_at_all(mask) else {}
    seen = torch.cat([mask[owner], (fed != IGNORED).long()], dim=1)
    with routed(condition.rows(owner)):
        rest = model(input_ids=fed.clamp(min=0), attention_mask=seen, past_key_values=cache, **place).logits
    return torch.cat([first[owner], rest], dim=1)


def _prompts(
    model: Any, routed: _Routed, inputs: dict[str, torch.Tensor], condition: Condition, following: int
) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """Logits after each prompt (B, 1, vocabulary), the prompts' cache, and the mask of what it holds.

    Tokens that all prompts begin with run once, unless their rows have different global terms. `following` tokens will
    be fed on the cache.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    # a window counts the padding that would lie between the beginning and what follows
    whole_rows = window is None or ids.shape[1] + following <= window
    count = _common_tokens(ids, mask) if whole_rows and routed.shares and condition.alike else 0
    if count * (len(ids) - 1) < WORTHWHILE:
        place = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if _padded_at_all(mask) else {}
        with routed(condition):
            found = model(**inputs, **place, use_cache=True, logits_to_keep=1)
        return found.logits, found.past_key_values, mask
    start = ids.shape[1] - mask.sum(dim=-1)  # (B,), where each row's tokens begin: they are padded on the left
    begin = int(start[0])
    with routed(condition.rows([0])):
        cache = model(input_ids=ids[:1, begin : begin + count], use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(len(ids))
    own = mask * (torch.arange(ids.shape[1], device=ids.device) >= (start + count)[:, None])  # (B, S), after the prefix
    ids, own = ids[:, int(start.min()) + count :], own[:, int(start.min()) + count :]
    whole = torch.cat([torch.ones_like(own[:, :1]).expand(-1, count), own], dim=1)
    place = {"position_ids": (whole.cumsum(-1) - 1)[:, count:].clamp(min=0)}
    with routed(condition):
        found = model(input_ids=ids, attention_mask=whole, past_key_values=cache, logits_to_keep=1, **place)
    return found.logits, found.past_key_values, whole


def _common_tokens(ids: torch.Tensor, mask: torch.Tensor) -> int:
    """How many tokens all prompts begin with; at least one of each is left over."""
    lengths = mask.sum(dim=-1)
    most = int(lengths.min()) - 1
    places = (ids.shape[1] - lengths)[:, None] + torch.arange(most, device=ids.device)
    begins = ids.gather(1, places)  # (B, most)
    return int((begins == begins[:1]).all(dim=0).long().cumprod(dim=0).sum())


def _padded_at_all(mask: torch.Tensor) -> bool:
    """Positions are the model's own business where nothing is padded."""
    return bool((mask == 0).any())
