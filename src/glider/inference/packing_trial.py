"""Whether packed passes give what plain ones do, tried on the model.

transformers takes any model for its continuous batching whose class says so; attention that changes keys or values
after its cache (DiffLlama), or that has a cache beside it, writes something else from the second token on.
"""

import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from glider.errors import BatchingError
from glider.inference.engine import Failed, NewToken, events
from glider.inference.packed_engine import PackedEngine
from glider.inference.sampler import RequestSettings
from glider.inference.sharing import close, ordinary_tokens
from glider.layers.attach import Attached
from glider.routing.condition import Condition

_LENGTHS = (37, 9)  # of the prompts
_NEW = 3
_lock = threading.RLock()
_known: "weakref.WeakKeyDictionary[Any, dict[tuple, bool]]" = weakref.WeakKeyDictionary()


def trial(attached: Attached) -> BatchingError | None:
    """Why requests of this model cannot share passes, tried once for each model without its experts; None if they can.

    Raises what `PackedEngine` raises where it cannot begin.
    """
    model: Any = attached.model
    key = (getattr(model.config, "_attn_implementation", None), model.dtype, model.device)
    with _lock:
        known = _known.setdefault(model, {})
        if key not in known:
            known[key] = _agrees(attached)
    if known[key]:
        return None
    got = f"{type(model).__name__}, whose packed passes give something else than plain ones"
    return BatchingError("a model whose attention takes a paged cache", got, "Use generate().", fixable=False)


def _agrees(attached: Attached) -> bool:
    model: Any = attached.model
    tokens, draw = ordinary_tokens(model), torch.Generator().manual_seed(0)
    prompts = {
        str(length): tokens[torch.randint(len(tokens), (length,), generator=draw)].tolist() for length in _LENGTHS
    }
    written: dict[str, list[NewToken]] = {name: [] for name in prompts}
    engine = PackedEngine(attached, None, [length + _NEW for length in _LENGTHS])
    with _quiet():
        try:
            for name, ids in prompts.items():
                engine.add(name, ids, Condition.nobody(1), RequestSettings(max_new_tokens=_NEW, logprobs=0))
            for event in events(engine, list(prompts)):
                if isinstance(event, Failed):
                    return False
                if isinstance(event, NewToken):
                    written[event.request].append(event)
        finally:
            engine.close()
    return all(_plain(attached, ids, written[name]) for name, ids in prompts.items())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' log of a pass that fails: it is an answer here."""
    log = logging.getLogger("ContinuousBatchingLogger")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@torch.inference_mode()
def _plain(attached: Attached, ids: list[int], written: list[NewToken]) -> bool:
    """Whether a plain pass gives each token that was written the log-probability that the packed one gave it."""
    model: Any = attached.model
    tokens = torch.tensor([one.token for one in written], device=model.device)
    row = torch.cat([torch.tensor(ids, device=model.device), tokens[:-1]])
    with attached.bare():
        logits = model(input_ids=row[None], use_cache=False).logits[0, len(ids) - 1 :]
    plain = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    packed = torch.tensor([one.logprob for one in written], device=model.device)
    return close(plain, packed, model.dtype)
