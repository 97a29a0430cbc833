"""The attention of a model while engines run on it: paged in their passes, as it was in all others."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

_lock = threading.Lock()
_engines: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()  # how many, and the attention before them


@contextmanager
def paged_attention(model: Any) -> Iterator[None]:
    """Switch a model to the paged form of its attention, where transformers has one, until the last such block ends.

    A scheduler would switch it too, and back at its own end, when another may still run; and the switch is one word of
    the configuration, which passes of other threads read. Those bring no paged cache, and attend as before.
    """
    with _lock:
        count, before = _engines.get(model, (0, model.config._attn_implementation))
        paged = f"paged|{before}"
        switched = before in ("eager", "sdpa") and paged in ALL_ATTENTION_FUNCTIONS
        if switched:
            _admit_plain_passes(paged, before)
            if count == 0:
                model.set_attn_implementation(paged)
            _engines[model] = (count + 1, before)
    try:
        yield
    finally:
        if switched:
            with _lock:
                count, before = _engines.pop(model)
                if count > 1:
                    _engines[model] = (count - 1, before)
                else:
                    model.set_attn_implementation(before)


def _admit_plain_passes(name: str, plain: str) -> None:
    paged = ALL_ATTENTION_FUNCTIONS[name]
    if not isinstance(paged, partial):
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[plain])
        AttentionInterface.register(name, partial(_attend, paged, plain))


def _attend(paged: Callable[..., Any], plain: str, module: Any, *tensors: Any, **named: Any) -> Any:
    if named.get("cache") is not None:
        return paged(module, *tensors, **named)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", paged)
    return ALL_ATTENTION_FUNCTIONS.get(plain, eager)(module, *tensors, **named)
