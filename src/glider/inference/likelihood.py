"""Log-likelihoods of several continuations of several prompts; every prompt is computed once where the model allows
it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch

from glider.errors import QueryError
from glider.inference.forward import decoder_inputs, decoder_tokens, last_logits, padded_left, positions
from glider.inference.sharing import Sharing
from glider.layers.attach import Attached, Generation
from glider.layers.caches import cache_after, with_cache
from glider.routing.base import support_of
from glider.routing.condition import Condition

Ids = Sequence[int]
IGNORED = -100
WORTHWHILE = 64  # tokens that are saved by computing a common beginning once, for which a pass more is made
ROWS = 32  # whole rows in a batch, where prompts are computed with each continuation


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
    forced: bool = True,
) -> list[list[Likelihood]]:
    """Score each row's continuations (token ids, at least one each), in float32.

    `inputs` are padded prompts, on the left for a decoder-only `model`, on the right for an encoder-decoder one;
    `condition` has a row for each, made for `generation` (by default the current one). The values are those of a plain
    pass over each prompt and continuation alone. The continuations of all rows run as one batch on the prompts' cache
    (or encoder states), each with its own row's condition, and a common beginning of the prompts runs once, as far as
    `Sharing` finds that this does not change the model's outputs. A decoder beside an encoder begins as `generate` has
    it, or without `forced` with its start token alone, as lm-evaluation-harness has it. Raises `QueryError` for
    likelihoods that are not finite.
    """
    with attached.hold(generation) as held:
        return _likelihoods(model, _Routed(attached, held, forced), inputs, continuations, condition)


@dataclass(frozen=True)
class _Routed:
    """Passes by one generation of an attached pool."""

    attached: Attached
    generation: Generation
    forced: bool = True  # what a decoder's settings force stands before its continuations

    def __call__(self, condition: Condition) -> AbstractContextManager[None]:
        return self.attached.routing(condition, generation=self.generation)

    @property
    def shares(self) -> bool:
        """Whether the router's decisions let a prompt be computed apart from what follows."""
        support = support_of(self.generation.router)
        return support.cache and (support.chunked or support.sequences)

    @property
    def by_sequence(self) -> bool:
        """Whether a prompt is decided as a whole: it must be computed apart from what follows, and in one piece."""
        return support_of(self.generation.router).sequences


@dataclass(frozen=True)
class _Batch:
    """Prompts, their continuations, and what computes them."""

    model: Any
    routed: _Routed
    inputs: dict[str, torch.Tensor]  # padded prompts (B, S)
    labels: torch.Tensor  # continuations (C, longest), padded on the right
    owner: torch.Tensor  # (C,), each continuation's prompt
    condition: Condition  # of the prompts

    @property
    def sharing(self) -> Sharing:
        """What the model lets be computed together."""
        return Sharing(self.model, self.routed.attached.bare)

    def of_prompts(self) -> AbstractContextManager[None]:
        """A pass over the prompts."""
        return self.routed(self.condition)

    def of_continuations(self, numbers: Sequence[int] | None = None) -> AbstractContextManager[None]:
        """A pass over the continuations, or over some of them, each by its prompt's condition."""
        owner = self.owner if numbers is None else self.owner[torch.tensor(numbers, device=self.owner.device)]
        return self.routed(self.condition.rows(owner))


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
        batch = _Batch(model, routed, inputs, labels, owner, condition)
        score = _encoder_decoder if model.config.is_encoder_decoder else _decoder_only
        logits = score(batch).float()  # (C, longest, vocabulary)
        targets = labels.clamp(min=0)[..., None]
        values = logits.gather(-1, targets)[..., 0] - logits.logsumexp(dim=-1)
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


def _encoder_decoder(batch: _Batch) -> torch.Tensor:
    model, inputs, labels, owner = batch.model, batch.inputs, batch.labels, batch.owner
    mask, fed, longest = inputs["attention_mask"], decoder_inputs(model, labels, batch.routed.forced), labels.shape[1]
    if batch.sharing.allows("encoder", mask.shape[1]):
        with batch.of_prompts():
            read = model.get_encoder()(**inputs)
        with batch.of_continuations():
            states = read.last_hidden_state[owner]
            outputs = type(read)(last_hidden_state=states)  # its own kind: a decoder may ask for the other parts
            inputs = {"encoder_outputs": outputs, "attention_mask": mask[owner], **decoder_tokens(model, fed)}
            return model(**inputs, use_cache=False).logits[:, -longest:]
    rows = [inputs["input_ids"][i, : int(mask[i].sum())] for i in owner.tolist()]
    logits: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for group in _batches(rows, alike=True):
        ids = torch.stack([rows[i] for i in group])
        with batch.of_continuations(group):
            outputs = model(input_ids=ids, **decoder_tokens(model, fed[group]), use_cache=False).logits
        for i, one in zip(group, outputs, strict=True):
            logits[i] = one[-longest:]
    return torch.stack(logits)


def _decoder_only(batch: _Batch) -> torch.Tensor:
    model, routed, inputs = batch.model, batch.routed, batch.inputs
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    length, sharing, apart = ids.shape[1] + batch.labels.shape[1] - 1, batch.sharing, routed.by_sequence
    common = _common_tokens(ids, mask) if routed.shares and batch.condition.alike and not apart else 0
    if common * (len(ids) - 1) >= WORTHWHILE and sharing.allows("prefix", length):
        return _continued(batch, *_after_common(batch, common))
    kind = "padded cache" if _padded_at_all(mask) else "cache"
    if (len(batch.owner) > len(ids) or apart) and routed.shares and sharing.allows(kind, length):
        with batch.of_prompts():
            first, output = last_logits(model, 1, **inputs, **positions(model, mask), use_cache=True)
        return _continued(batch, first, cache_after(output), mask)
    if apart:
        expected = "a model whose prompts may be computed apart from answers, for a router that decides them as a whole"
        raise QueryError(expected, type(model).__name__, "Score one prompt at a time, or by another router.")
    return _whole(batch)


def _whole(batch: _Batch) -> torch.Tensor:
    """Each prompt with each continuation as a row; padded only where padding changes nothing."""
    model, labels = batch.model, batch.labels
    padded = zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True)
    prompts = [ids[mask.bool()].tolist() for ids, mask in padded]
    targets = [ids[ids != IGNORED].tolist() for ids in labels]
    rows = [prompts[i] + target[:-1] for i, target in zip(batch.owner.tolist(), targets, strict=True)]
    unlike = len(set(map(len, rows))) > 1
    padding = unlike and batch.sharing.allows("padding", max(map(len, rows)))
    logits: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for group in _batches(rows, alike=not padding):
        inputs = padded_left([rows[i] for i in group], labels.device)
        place = positions(model, inputs["attention_mask"]) if "attention_mask" in inputs else {}
        count = max(len(targets[i]) for i in group)
        with batch.of_continuations(group):
            outputs, _ = last_logits(model, count, **inputs, **place, use_cache=False)
        for i, one in zip(group, outputs, strict=True):
            answer = one[count - len(targets[i]) :]
            logits[i] = torch.nn.functional.pad(answer, (0, 0, 0, labels.shape[1] - len(answer)))
    return torch.stack(logits)


def _batches(rows: Sequence[Any], *, alike: bool) -> list[list[int]]:
    """Numbers of rows that run together: those of one length, or neighbours in length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    groups: list[list[int]] = []
    for i in order:
        if groups and len(groups[-1]) < ROWS and not (alike and len(rows[groups[-1][0]]) != len(rows[i])):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _continued(batch: _Batch, first: torch.Tensor, cache: Any, mask: torch.Tensor) -> torch.Tensor:
    """Continuations on the cache of their prompts, all as one batch.

    `first` (B, 1, vocabulary) are the logits after each prompt, `mask` is that of what the cache holds.
    """
    model, labels, owner = batch.model, batch.labels, batch.owner
    longest = labels.shape[1]
    if longest == 1:
        return first[owner]
    if len(owner) > 1 or len(mask) > 1:
        cache.batch_select_indices(owner)
    fed = labels[:, :-1]
    seen = torch.cat([mask[owner], (fed != IGNORED).long()], dim=1)
    steps = torch.arange(1, longest, device=fed.device)
    place = {}
    if positions(model, mask):
        place = {"position_ids": mask.sum(dim=-1, keepdim=True)[owner] - 1 + steps}
    with batch.of_continuations():
        rest = model(
            input_ids=fed.clamp(min=0), attention_mask=seen, **with_cache(model, cache), use_cache=True, **place
        ).logits
    return torch.cat([first[owner], rest], dim=1)


def _after_common(batch: _Batch, count: int) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """Logits after each prompt (B, 1, vocabulary), the prompts' cache, and the mask of what it holds.

    The first `count` tokens, common to all prompts, run once.
    """
    model, ids, mask = batch.model, batch.inputs["input_ids"], batch.inputs["attention_mask"]
    start = ids.shape[1] - mask.sum(dim=-1)  # (B,), where each row's tokens begin: they are padded on the left
    begin = int(start[0])
    with batch.routed(batch.condition.rows([0])):
        _, output = last_logits(model, 1, input_ids=ids[:1, begin : begin + count], use_cache=True)
    cache = cache_after(output)
    cache.batch_repeat_interleave(len(ids))
    rest = mask * (torch.arange(ids.shape[1], device=ids.device) >= (start + count)[:, None])  # (B, S), past the prefix
    ids, rest = ids[:, int(start.min()) + count :], rest[:, int(start.min()) + count :]
    whole = torch.cat([torch.ones_like(rest[:, :1]).expand(-1, count), rest], dim=1)
    place = {name: value[:, count:] for name, value in positions(model, whole).items()}
    with batch.of_prompts():
        first, output = last_logits(
            model, 1, input_ids=ids, attention_mask=whole, **with_cache(model, cache), use_cache=True, **place
        )
    return first, cache_after(output), whole


def _common_tokens(ids: torch.Tensor, mask: torch.Tensor) -> int:
    """The length of the prompts' common beginning; at least one token of each prompt is left over."""
    lengths = mask.sum(dim=-1)
    most = int(lengths.min()) - 1
    places = (ids.shape[1] - lengths)[:, None] + torch.arange(most, device=ids.device)
    begins = ids.gather(1, places)  # (B, most)
    return int((begins == begins[:1]).all(dim=0).long().cumprod(dim=0).sum())


def _padded_at_all(mask: torch.Tensor) -> bool:
    return bool((mask == 0).any())
