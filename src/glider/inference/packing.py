"""What continuous batching needs of transformers, of a model and of a router, and the settings of its scheduler."""

import copy
import gc
import weakref
from collections.abc import Sequence
from dataclasses import fields, replace
from math import ceil
from typing import Any

import torch
import transformers

from glider.errors import BatchingError, QueryError
from glider.inference.forward import accepts
from glider.inference.prompt_states import first_layer
from glider.inference.sharing import named_lengths
from glider.layers.attach import Attached
from glider.layers.caches import cache_after
from glider.layers.routed_linear import RoutedLinear
from glider.routing.base import support_of

REQUESTS = 32  # at once, where the caller does not say
PASS_TOKENS = 512  # of one forward pass, likewise
CACHE_TOKENS = 16384  # where the lengths of the requests are not known either
PAGE = 32  # tokens: the cache is given out by pages
SALT = 8  # tokens of a prompt that are marked by its condition, where blocks are told apart
_PAGED_LAYERS = {"full_attention", "sliding_attention"}
_windowless: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()  # by model
_minding: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()  # by model
_NEAR = 16  # tokens, beside which one far behind them is set
_odd: "weakref.WeakKeyDictionary[Any, str | None]" = weakref.WeakKeyDictionary()  # by model
UPGRADE = "Upgrade transformers to 5.18 or later, or use generate()."


def refusal(attached: Attached) -> BatchingError | None:
    """Why requests of this model cannot share passes, or None."""
    model: Any = attached.model
    config = getattr(transformers, "ContinuousBatchingConfig", None)
    if config is None or "page_size" not in {field.name for field in fields(config)}:
        got = f"transformers {transformers.__version__}"
        return BatchingError("transformers with continuous batching by pages", got, UPGRADE)
    if model.config.is_encoder_decoder or not hasattr(model, "init_continuous_batching"):
        return BatchingError(
            "a decoder-only model for continuous batching", type(model).__name__, "Use generate().", fixable=False
        )
    if not getattr(model, "_supports_attention_backend", False):
        got = f"{type(model).__name__}, whose attention is its own and reads no paged cache"
        return BatchingError("a model whose attention takes a paged cache", got, "Use generate().", fixable=False)
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _PAGED_LAYERS
    if layers:
        got = f"{type(model).__name__}, whose layers of {', '.join(sorted(layers))} keep another cache"
        return BatchingError("a model whose attention takes a paged cache", got, "Use generate().", fixable=False)
    if odd := _odd_cache(attached):
        got = f"{type(model).__name__}, whose cache has {odd}"
        return BatchingError(
            "keys and values of one width, as a paged cache has them", got, "Use generate().", fixable=False
        )
    if _ignores_window(attached):
        got = f"{type(model).__name__}, which attends past the sliding_window that its configuration names"
        return BatchingError("attention as a paged cache has it", got, "Use generate().", fixable=False)
    if _minds_later_places(attached):
        got = f"{type(model).__name__}, whose positions mean something else beside a longer prompt"
        return BatchingError("positions that mean the same in every pass", got, "Use generate().", fixable=False)
    if (site := _after_blocks(model)) is not None:
        got = f"an expert of {site}, which sees the last token of each prompt alone"
        return BatchingError("sites that see every token of a pass", got, "Use generate().", fixable=False)
    if getattr(model, "_cached_continuous_batching_manager", None) is not None:
        remedy = "Call destroy_cached_continuous_batching_manager() on the model."
        return BatchingError("a model free for a run of its own", "one that keeps a manager of another run", remedy)
    support = support_of(attached.router)
    if not (support.packed and support.chunked and support.cache and support.mixed):
        got = f"{type(attached.router).__name__}, whose decisions need whole prompts by themselves"
        return BatchingError("a router that decides token by token", got, "Use generate().", fixable=False)
    return None


def _after_blocks(model: Any) -> str | None:
    """A routed layer behind the model's blocks, such as the output layer or what RoBERTa has before it."""
    inner = getattr(model, model.base_model_prefix, None) is not None
    prefix, head = f"{model.base_model_prefix}.", model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, RoutedLinear) and (module is head or (inner and not name.startswith(prefix))):
            return name
    return None


def _ignores_window(attached: Attached) -> bool:
    """Whether a model attends past the one window that its configuration names for all layers, as transformers' paged
    cache takes it to be. Seen in its first layer, by two rows that differ in a token that the window has left."""
    model: Any = attached.model
    config = model.config.get_text_config()
    window, context = (getattr(config, name, None) for name in ("sliding_window", "max_position_embeddings"))
    if getattr(config, "layer_types", None) is not None or not isinstance(window, int):
        return False
    if isinstance(context, int) and window >= context - 1:
        return False  # no request comes so far
    if model not in _windowless:
        ids = torch.full((2, window + 2), min(3, model.get_input_embeddings().weight.shape[0] - 1), device=model.device)
        ids[1, 0] -= 1
        try:
            with attached.bare(), torch.no_grad():
                first, second = first_layer(model, ids)
            _windowless[model] = not torch.allclose(first[-1], second[-1], rtol=1e-4, atol=1e-5)
        except (AttributeError, StopIteration, RuntimeError, TypeError, ValueError):
            _windowless[model] = True  # nobody knows
    return _windowless[model]


def _minds_later_places(attached: Attached) -> bool:
    """Whether a token's answer depends on where later ones stand: rotary angles that are stretched past a length
    (longrope, dynamic NTK) are so for all tokens of a pass, the short prompts' among them."""
    model: Any = attached.model
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    far = context - 1 if isinstance(context, int) else max(named_lengths(model.config), default=0)
    if far <= _NEAR or not accepts(model, "position_ids"):
        return False
    if model not in _minding:
        vocabulary = model.get_input_embeddings().weight.shape[0]
        ids = torch.arange(3, 4 + _NEAR, device=model.device)[None] % vocabulary  # alike ones would hide all places
        near = torch.arange(_NEAR + 1, device=model.device)[None]
        moved = near.clone()
        moved[0, -1] = far
        try:
            with attached.bare(), torch.no_grad():
                one, other = (model(input_ids=ids, position_ids=at, use_cache=False).logits for at in (near, moved))
            _minding[model] = not torch.allclose(one[:, :_NEAR], other[:, :_NEAR], rtol=1e-4, atol=1e-4)
        except (IndexError, RuntimeError, TypeError, ValueError):
            _minding[model] = False  # places of another form, which a pass is not given
    return _minding[model]


def _odd_cache(attached: Attached) -> str | None:
    """What of a model's own cache has no place in a paged one, seen after a pass over two tokens; None if all has."""
    model: Any = attached.model
    if model not in _odd:
        ids = torch.full((1, 2), min(3, model.get_input_embeddings().weight.shape[0] - 1), device=model.device)
        with attached.bare(), torch.no_grad():
            cache = cache_after(model(input_ids=ids, use_cache=True))
        layers = getattr(cache, "layers", None) or ()
        shapes = {
            (tensor.shape[1], tensor.shape[-1])
            for layer in layers
            if _has_keys(layer)
            for tensor in (layer.keys, layer.values)
        }
        odd = None if all(map(_has_keys, layers)) else "layers without keys"
        if odd is None and shapes and shapes != {room := _paged_shape(model.config.get_text_config(), shapes)}:
            odd = f"heads and widths {sorted(shapes)}, where a paged cache has room for {room or 'one of each'}"
        odd = odd or _repeated(model, {heads for heads, _ in shapes})
        _odd[model] = odd
    return _odd[model]


def _repeated(model: Any, heads: set[int]) -> str | None:
    """Keys that a model repeats before its attention sees them (JetMoE), where a paged cache would take them in."""
    queries = getattr(model.config.get_text_config(), "num_attention_heads", None)
    numbers = (getattr(module, "num_key_value_groups", None) for module in model.modules())
    groups = {number for number in numbers if isinstance(number, int) and number > 0}
    if not isinstance(queries, int) or len(heads) != 1 or len(groups) != 1:
        return None
    keys, room = queries // groups.pop(), min(heads)
    return None if keys == room else f"{room} heads of keys, which become {keys} before attention"


def _paged_shape(config: Any, shapes: set[tuple[int, int]]) -> tuple[int, int] | None:
    """Heads and width that transformers makes a paged cache for, among those that a pass showed where it keeps to
    itself how it finds them; None where a configuration does not tell."""
    from transformers.generation.continuous_batching import utils

    if not (hasattr(utils, "find_head_dim") and hasattr(utils, "find_num_key_value_heads")):
        return min(shapes)
    try:
        return utils.find_num_key_value_heads(config), utils.find_head_dim(config)
    except Exception:  # of a configuration of its own kind: a width for each layer (Gemma 4), or none
        return None


def _has_keys(layer: Any) -> bool:
    return getattr(layer, "keys", None) is not None and getattr(layer, "values", None) is not None


def sized(batching: Any, lengths: Sequence[int]) -> Any:
    """The scheduler's settings, with what they leave open made for requests of these lengths (answers included).

    Left to itself it takes six tenths of a CPU's memory for its cache.
    """
    batching = transformers.ContinuousBatchingConfig(page_size=PAGE) if batching is None else copy.copy(batching)
    if not isinstance(batching, transformers.ContinuousBatchingConfig):
        raise QueryError("a ContinuousBatchingConfig", type(batching).__name__, "Give transformers' own, or none.")
    compiled = batching.varlen_compile_config or batching.decode_compile_config or batching.default_compile_level
    graphs = batching.use_cuda_graph
    if batching.use_async_batching or compiled or (any(graphs) if isinstance(graphs, tuple) else graphs):
        got = "use_async_batching, use_cuda_graph or a compiled pass"
        raise QueryError("passes that look up their requests", got, "Leave these out of `batching`.")
    requests = batching.max_requests_per_batch or min(len(lengths) or REQUESTS, REQUESTS)
    filled: dict[str, Any] = {"use_cuda_graph": False, "use_async_batching": False, "max_requests_per_batch": requests}
    filled["max_batch_tokens"] = batching.max_batch_tokens or PASS_TOKENS
    if batching.num_blocks is None:
        longest = sorted(lengths, reverse=True)[:requests] or [CACHE_TOKENS]
        filled["num_blocks"] = sum(ceil(length / batching.page_size) + 1 for length in longest)
        if batching.safety_margin is None:
            filled["safety_margin"] = 0.0  # so many requests fit
    filled["allow_block_sharing"] = batching.allow_block_sharing and batching.page_size >= SALT
    return replace(batching, **filled)


def stop(manager: Any) -> None:
    """Stop it, but without its two collections over every object of the process: seconds where much is imported."""
    frozen_here = gc.get_freeze_count() == 0
    if frozen_here:
        gc.freeze()
    try:
        manager.stop(block=True, hard_stop=True)
    finally:
        if frozen_here:
            gc.unfreeze()
