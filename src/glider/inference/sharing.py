"""What may be computed together, or once for several rows of tokens, found by testing the model itself.

Padding, kept keys and values, and a beginning that several rows share change nothing in a model whose attention looks
at distances between tokens. Recurrent layers, attention by the place in the row, windows and chunks are exceptions, and
no field of a configuration identifies them reliably. So random tokens are run, each row alone and then together, at
least as many as the rows in question have, and past every window and chunk that the configuration names. Where the
results differ nothing is shared, and nothing is shared beyond the tested length.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from glider.inference.forward import (
    decoder_tokens,
    last_logits,
    padded,
    padded_left,
    plain_model,
    positions,
    start_token,
)
from glider.layers.caches import cache_after, with_cache
from glider.layers.widths import linear_widths
from glider.shapes import Float, Int, Tensor

Kind = Literal["padding", "generation", "cache", "padded cache", "prefix", "encoder"]
SHORTEST, LONGEST = 64, 8192  # tokens that are tried
_READ, _PART = 8, 3  # tokens, of which the last is changed; the first of them, by themselves
_ODD, _ODD_COARSE = 1e-2, 1.0  # of log-probabilities: more than any rounding; in 16 bits, and of quantised weights
_LENGTHS = ("window", "chunk", "original_max_position", "compress", "block_size", "local_radius")  # parts of names
_STEPS = 3  # of generation
_FOLLOWING = 4  # tokens fed on a cache at once
_PAST = 1.5  # of a window: so much longer rows show it
_CHUNKS = 3  # chunks of a row in which a layer parts tokens among them
_FAULTS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
_TOLERANCE = 3e-4  # of log-probabilities in float32
_TOLERANCE_EPS = 32  # times the resolution of a coarser dtype

_LOOKS_FORWARD = "whose answer to a beginning depends on how many tokens follow"

_lock = threading.RLock()
_known: "weakref.WeakKeyDictionary[nn.Module, dict[tuple, bool]]" = weakref.WeakKeyDictionary()


def oddity(model: Any) -> str | None:
    """What no likelihood and no route can be had of, tried with two rows that differ in their last token.

    A decoder's token whose logits depend on those behind it, or on how many there are; layers that take the tokens
    first and the rows second, whose tokens would be given to the wrong queries. None where there is none, or where the
    model takes no text alone.
    """
    tokens = ordinary_tokens(model)
    row = tokens[torch.arange(_READ).mul(7).add(3) % len(tokens)]
    other = torch.cat([row[:-1], tokens[(tokens == row[-1]).long().argmax().add(1) % len(tokens)][None]])
    ids = torch.stack([row, other]).to(model.device)
    inputs: dict[str, Any] = {"input_ids": ids}
    lengths, encoder_decoder = {_READ}, model.config.is_encoder_decoder
    read = "decoder_input_ids" if encoder_decoder else "input_ids"
    if encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :_FOLLOWING]
        lengths.add(_FOLLOWING)
    turned: set[str] = set()

    def look(layer: nn.Module, arguments: tuple) -> None:
        x = arguments[0] if arguments and isinstance(arguments[0], torch.Tensor) else torch.empty(0)
        if x.ndim == 3 and x.shape[1] == 2 and (len(x) in lengths or _unlike_once(x)):
            turned.add(type(layer).__name__)

    layers = [module for module in model.modules() if linear_widths(module) is not None]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        with torch.no_grad(), _evaluating(model), _exact(model.device):
            logits = model(**inputs, use_cache=False).logits
            part = {name: value[:1, : _PART if name == read else None] for name, value in inputs.items()}
            alone = model(**part, use_cache=False).logits
        if turned:
            return "whose layers take the tokens first and the rows second"
        first, second = logits.float().log_softmax(-1)
        if not bool(first.isfinite().all()):
            return None
        if not encoder_decoder and _differ(first[:-1], second[:-1], model.dtype):
            return "whose tokens see those behind them too: what it says of a token knows the token"
        if _differ(first[:_PART], alone[0].float().log_softmax(-1), model.dtype):
            return _LOOKS_FORWARD
        if not encoder_decoder and (longer := _past_short_chunks(model, tokens)) is not None:
            beginning = model(input_ids=longer, use_cache=False).logits[0, : _READ - 1].float().log_softmax(-1)
            return _LOOKS_FORWARD if _differ(first[:-1], beginning, model.dtype) else None
    except (*_FAULTS, AssertionError):
        pass  # it wants more than text; whoever asks it is told
    finally:
        for hook in hooks:
            hook.remove()
    return None


def missing_cache(model: Any) -> str | None:
    """Why transformers can keep no keys and values of a model, where every pass with them fails.

    Its configuration lacks a size that they are made by (BLT's). None where they can be kept, or where no pass of text
    alone can be made.
    """
    from transformers import DynamicCache

    try:
        DynamicCache(config=model.config)
        return None
    except AttributeError:
        pass  # many such models make a cache of their own
    ids = ordinary_tokens(model)[:_READ][None].to(model.device)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}
    with torch.no_grad(), _evaluating(model), _exact(model.device):
        try:
            model(**inputs, use_cache=False)
        except (*_FAULTS, AssertionError):
            return None  # it wants more than text; whoever asks it is told
        try:
            model(**inputs, use_cache=True)
        except AttributeError as fault:
            return str(fault)
    return None


def _past_short_chunks(model: Any, tokens: Int[Tensor, " N"]) -> Int[Tensor, "1 S"] | None:
    """A row with the beginning that `oddity` tries, past what a configuration names as short chunks: layers that hash
    tokens into chunks (Reformer's) begin there. None where it names none."""
    short = [length for length in named_lengths(model.config, ("chunk",)) if _READ < length <= 2 * SHORTEST]
    if not short:
        return None
    places = torch.arange(_CHUNKS * max(short)).mul(7).add(3) % len(tokens)
    return tokens[places][None].to(model.device)


def _unlike_once(x: Tensor) -> bool:
    """Whether two rows of tokens stand side by side, alike but for their last token; padding of a model's own (LED's,
    to whole windows) may lengthen them."""
    return len(x) > 2 and int((x[:, 0] == x[:, 1]).all(dim=-1).sum()) == len(x) - 1


class Sharing:
    """What a model may share. `passes` surrounds the passes of a trial (a routed model runs them without experts)."""

    def __init__(self, model: Any, passes: Callable[[], AbstractContextManager[Any]] = nullcontext):
        self._model, self._passes = model, passes

    def allows(self, kind: Kind, length: int) -> bool:
        """Whether rows of this many tokens, padding included, may be computed in this way; tested once for each size.

        "padding": rows of unlike lengths in one batch; "generation": the tokens that are written after such; "cache":
        several continuations on one prompt's cache; "padded cache": the same for prompts of unlike lengths; "prefix":
        what all rows begin with once, padding after it; "encoder": an encoder's states of prompts of unlike lengths,
        for several continuations.
        """
        tried = self._tried(length)
        if tried is None:
            return False
        model = plain_model(self._model)
        attention = getattr(model.config, "_attn_implementation", None)
        key = (kind, tried, attention, model.dtype, model.device)
        with _lock:
            known = _known.setdefault(self._model, {})
            if key not in known:
                with self._passes(), torch.no_grad(), _evaluating(self._model), _exact(model.device):
                    known[key] = self._agrees(kind, tried)
            return known[key]

    def _tried(self, length: int) -> int | None:
        """Tokens of a trial for rows of this length; None where none is long enough."""
        tried = SHORTEST
        while tried < length:
            tried *= 2
        while any(window < tried < _PAST * window for window in named_lengths(plain_model(self._model).config)):
            tried *= 2
        config = plain_model(self._model).config.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        if isinstance(context, int) and length <= context < tried:
            tried = context
        return tried if length <= tried <= LONGEST else None

    def _agrees(self, kind: Kind, length: int) -> bool:
        model, draw = self._model, torch.Generator().manual_seed(length)
        tokens = ordinary_tokens(plain_model(model))

        def row(count: int) -> list[int]:
            return tokens[torch.randint(len(tokens), (count,), generator=draw)].tolist()

        trial = {
            "padding": _padding,
            "generation": _generation,
            "cache": _cache,
            "padded cache": _padded_cache,
            "prefix": _prefix,
            "encoder": _encoder,
        }[kind]
        try:
            dtype = plain_model(model).dtype
            return all(close(together, alone, dtype) for together, alone in trial(model, row, length))
        except _FAULTS:
            return False  # it cannot be computed so at all


Row = Callable[[int], list[int]]
Pairs = Iterator[tuple[Float[Tensor, "C V"], Float[Tensor, "C V"]]]


def _alone(model: Any, row: Sequence[int], count: int) -> Float[Tensor, "C V"]:
    """Log-probabilities after each of a row's last tokens, by a plain pass."""
    ids = torch.tensor([list(row)], device=plain_model(model).device)
    return last_logits(model, count, input_ids=ids, use_cache=False)[0][0].float().log_softmax(-1)


def _padding(model: Any, row: Row, length: int) -> Pairs:
    rows = [row(count) for count in (*_unlike(model, length), _FOLLOWING)]
    if plain_model(model).config.is_encoder_decoder:
        yield from _encoder_pairs(model, rows, row(_FOLLOWING), states=False)
        return
    batch = padded_left(rows, plain_model(model).device)
    inputs = {**batch, **positions(model, batch["attention_mask"])}
    together = last_logits(model, _FOLLOWING, **inputs, use_cache=False)[0].float().log_softmax(-1)
    for got, one in zip(together, rows, strict=True):
        yield got, _alone(model, one, _FOLLOWING)


def _generation(model: Any, row: Row, length: int) -> Pairs:
    """The first steps of `generate`, which manages positions and caches itself."""
    rows = [row(count) for count in _unlike(model, length)]
    together = _steps(model, padded(rows, 0, model))
    for number, one in enumerate(rows):
        alone = _steps(model, padded([one], 0, model))
        for step in range(_STEPS):
            yield together[step][number], alone[step][0]
            if int(together[step][number].argmax()) != int(alone[step][0].argmax()):
                break  # a tie: the next steps are of other tokens


def _steps(model: Any, inputs: dict[str, Tensor]) -> list[Float[Tensor, "B V"]]:
    """Log-probabilities of each new token."""
    written = plain_model(model).generate(
        **inputs, max_new_tokens=_STEPS, do_sample=False, num_beams=1, num_return_sequences=1, output_logits=True,
        return_dict_in_generate=True, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return [logits.float().log_softmax(-1) for logits in written.logits]


def _cache(model: Any, row: Row, length: int) -> Pairs:
    yield from _continued(model, [row(length - _FOLLOWING)], row)


def _padded_cache(model: Any, row: Row, length: int) -> Pairs:
    yield from _continued(model, [row(count) for count in (*_unlike(model, length - _FOLLOWING), 2)], row)


def _continued(model: Any, rows: list[list[int]], row: Row) -> Pairs:
    """Every row's cache taken twice, with another continuation on each."""
    batch = padded_left(rows, plain_model(model).device)
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    inputs = {**batch, **positions(model, mask)}
    first, output = last_logits(model, 1, **inputs, use_cache=True)
    owner = torch.arange(len(rows), device=mask.device).repeat_interleave(2)
    cache = cache_after(output)
    cache.batch_select_indices(owner)
    yield from _fed(model, cache, first[owner], mask[owner], [rows[i] for i in owner.tolist()], row)


def _prefix(model: Any, row: Row, length: int) -> Pairs:
    """The beginning of all rows once, rests of unlike lengths after it, then a continuation of each."""
    count = _beside(model, length)
    prefix, rests = row(count), [row(length - count - _FOLLOWING), row(length // 7), row(1)]
    device = plain_model(model).device
    ids = torch.tensor([prefix], device=device)
    cache = cache_after(last_logits(model, 1, input_ids=ids, use_cache=True)[1])
    cache.batch_repeat_interleave(len(rests))
    batch = padded_left(rests, device)
    rest_mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    mask = torch.cat([rest_mask.new_ones(len(rests), count), rest_mask], dim=1)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": mask, **with_cache(model, cache), "use_cache": True}
    place = {name: value[:, count:] for name, value in positions(model, mask).items()}
    first, output = last_logits(model, 1, **inputs, **place)
    yield from _fed(model, cache_after(output), first, mask, [[*prefix, *rest] for rest in rests], row)


def _unlike(model: Any, length: int) -> tuple[int, int, int]:
    """Lengths of rows that are padded to the first of them: one of few tokens, and one past whatever the first is past,
    since a row that no chunk has ended in shows nothing of chunks that its padding would move."""
    return length, length - max(1, length // 11), _beside(model, length)


def _beside(model: Any, length: int) -> int:
    """About 3/7 of a length, in the middle third of as many shorter chunks as can be: a border would show nothing."""
    windows = [window for window in named_lengths(plain_model(model).config) if 3 < window < length]

    def inside(count: int) -> int:
        return sum(1 / 3 <= count % window / window <= 2 / 3 for window in windows)

    return max(range(max(2, 3 * length // 7), 1, -1), key=inside)


def _fed(
    model: Any, cache: Any, first: Float[Tensor, "B 1 V"], mask: Int[Tensor, "B S"], rows: list[list[int]], row: Row
) -> Pairs:
    """Log-probabilities of continuations on a cache, with those of each whole row."""
    following = [row(_FOLLOWING) for _ in rows]
    fed = torch.tensor(following, device=mask.device)
    seen = torch.cat([mask, torch.ones_like(fed)], dim=1)
    place = {name: value[:, mask.shape[1] :] for name, value in positions(model, seen).items()}
    rest = model(input_ids=fed, attention_mask=seen, **with_cache(model, cache), use_cache=True, **place).logits
    together = torch.cat([first, rest], dim=1).float().log_softmax(-1)
    for got, one, more in zip(together, rows, following, strict=True):
        yield got, _alone(model, [*one, *more], _FOLLOWING + 1)


def _encoder(model: Any, row: Row, length: int) -> Pairs:
    rows = [row(count) for count in (*_unlike(model, length), _FOLLOWING)]
    yield from _encoder_pairs(model, rows, row(_FOLLOWING), states=True)


def _encoder_pairs(model: Any, rows: list[list[int]], target: list[int], *, states: bool) -> Pairs:
    """One target after prompts of unlike lengths, by the encoder's states or by whole passes, beside each alone."""
    device, width = plain_model(model).device, max(map(len, rows))
    ids = torch.tensor([one + [0] * (width - len(one)) for one in rows], device=device)
    mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in rows], device=device)
    fed = torch.tensor([[start_token(model), *target]], device=device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if states:
        inputs = {"encoder_outputs": plain_model(model).get_encoder()(**inputs), "attention_mask": mask}
    together = model(**inputs, **decoder_tokens(model, fed.expand(len(rows), -1)), use_cache=False).logits
    for got, one in zip(together.float().log_softmax(-1), rows, strict=True):
        whole = {"input_ids": torch.tensor([one], device=device), **decoder_tokens(model, fed)}
        alone = model(**whole, use_cache=False).logits
        yield got, alone[0].float().log_softmax(-1)


def close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Equality within the rounding of log-probabilities."""
    coarse = 0.0 if dtype == torch.float32 else _TOLERANCE_EPS * torch.finfo(dtype).eps
    difference = torch.where(one == other, 0.0, one - other).abs().max()
    return bool(difference <= max(_TOLERANCE, coarse))  # not where it is NaN


def _differ(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether log-probabilities differ by more than rounding ever does."""
    return bool((one - other).abs().max() > (_ODD if dtype == torch.float32 else _ODD_COARSE))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout inside the block."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """In the model's own arithmetic inside the block."""
    with torch.autocast(device.type, enabled=False):
        yield


def named_lengths(config: Any, words: Sequence[str] = _LENGTHS) -> set[int]:
    """Lengths that the configuration names as windows or chunks of attention, or as a context that it was made for."""
    return {
        value
        for part in _parts(config.to_dict())
        for name, value in part.items()
        if type(value) is int and value > 1 and any(word in name for word in words)
    }


def ordinary_tokens(model: Any) -> Int[Tensor, " N"]:
    """Tokens of the vocabulary that the configuration gives no other meaning, such as padding or a picture."""
    text = model.config.get_text_config()
    embedding = model.get_input_embeddings()
    size = min(getattr(embedding, "num_embeddings", text.vocab_size), text.vocab_size)
    special = {
        value
        for part in _parts(model.config.to_dict())
        for name, value in part.items()
        if type(value) is int and name.endswith(("_token_id", "_token_index"))
    }
    return torch.tensor([token for token in range(size) if token not in special] or [0])


def _parts(config: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    yield {name: value for name, value in config.items() if isinstance(name, str)}  # Aria maps numbers to numbers
    for value in config.values():
        if isinstance(value, dict):
            yield from _parts(value)
