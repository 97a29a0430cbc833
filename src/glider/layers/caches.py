"""The cache of keys, values and states that passes go on from, by whichever name transformers gives it.

It is `cache` from transformers 5.24 on; before, `past_key_values`, or `cache_params` of state-space models. Packed
passes bring a paged cache as `cache` under all of them.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.modeling_outputs import CausalLMOutputWithPast

_NAMES = ("cache", "past_key_values", "cache_params")
_USUAL = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def cache_among(inputs: Mapping[str, Any]) -> Any:
    """The cache that a pass is given, None without one."""
    return next((cache for name in _NAMES if (cache := inputs.get(name)) is not None), None)


def is_paged(cache: Any) -> bool:
    """Whether a cache is that of packed passes, which has several requests in a row."""
    return isinstance(cache, PagedAttentionCache)


def has_tokens(cache: Any) -> bool:
    """Whether a pass on this cache goes on from earlier tokens, as on any that does not tell its length."""
    return cache is not None and (not hasattr(cache, "get_seq_length") or cache.get_seq_length() > 0)


def cache_after(output: Any) -> Any:
    """The cache that a pass leaves, None without one."""
    name = next((name for name in _NAMES if hasattr(output, name)), None)  # a further one would be an alias, and warn
    return None if name is None else getattr(output, name)


def with_cache(model: Any, cache: Any) -> dict[str, Any]:
    """The argument of a model's pass that goes on from a cache; of one in a wrapper that names none, the usual."""
    names = inspect.signature(model.forward).parameters
    return {next((name for name in _NAMES if name in names), _USUAL): cache}
