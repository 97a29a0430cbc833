"""Types and bounds of generation settings: what transformers would trip over, or read as something else, is told.

numpy's numbers and tensors are taken as the numbers that they hold.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from glider.errors import QueryError

_FLAGS = (
    *("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values", "return_dict_in_generate"),
    *("output_scores", "output_logits", "output_attentions", "output_hidden_states"),
)
_WHOLE = {  # and the least that each may be
    "num_beams": 1, "num_return_sequences": 1, "top_k": 0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "min_new_tokens": 0, "min_length": 0, "prefill_chunk_size": 1, "prompt_lookup_num_tokens": 1,
    "max_matching_ngram_size": 1, "num_beam_groups": 1, "assistant_early_exit": 1,
    "forced_bos_token_id": 0, "pad_token_id": 0, "bos_token_id": 0, "decoder_start_token_id": 0, "seed": -(1 << 63),
}  # fmt: skip
_COUNTS = ("num_beams", "num_return_sequences", "prefill_chunk_size")  # what is parted among them ends in an error
_LONGEST_NGRAM = 10_000  # tokens; transformers makes so many lists for each row and step
_NUMBERS = {
    "temperature": 0.0, "top_p": 0.0, "min_p": 0.0, "typical_p": 0.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "repetition_penalty": 0.0, "encoder_repetition_penalty": 0.0, "length_penalty": -math.inf,
    "guidance_scale": -math.inf, "max_time": 0.0, "diversity_penalty": 0.0, "penalty_alpha": 0.0,
}  # fmt: skip
_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "encoder_repetition_penalty")
_TOKENS = ("eos_token_id", "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id")
_COLDEST = 1e-6  # of temperatures: logits are divided by it
_LARGEST_SEED = (1 << 63) - 1
_FUNCTIONS = ("prefix_allowed_tokens_fn",)
_PARTS = {"streamer": ("put", "end"), "assistant_model": ("config", "generate")}  # by what they must have


def plain_value(value: Any) -> Any:
    """A number that numpy or torch holds, as Python's own; an array of some as a list. All else as it is."""
    if type(value).__module__.partition(".")[0] in ("numpy", "torch") and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return type(value)(map(plain_value, value)) if type(value) in (list, tuple) else value
    return value


def checked_values(settings: Mapping[str, Any], bounded: bool = True) -> dict[str, Any]:
    """Settings of `generate` with values of the right types, and within their bounds unless `bounded` is false; raises
    `QueryError` for others."""
    checked = {name: plain_value(value) for name, value in settings.items()}
    for name, value in checked.items():
        if value is None:
            continue
        if name in _FLAGS:
            _require(isinstance(value, bool), name, "True or False", value)
        elif name in _WHOLE:
            least = _WHOLE[name]
            fits = _is_whole(value) and (value >= least or not (bounded or name in _COUNTS))
            _require(fits, name, _bounded("a whole number", least), value)
            if name.endswith("ngram_size"):
                _require(value <= _LONGEST_NGRAM, name, f"at most {_LONGEST_NGRAM} tokens", value)
        elif name in _NUMBERS:
            fits = _is_number(value) and (value >= _NUMBERS[name] or not bounded)
            _require(fits, name, _bounded("a number", _NUMBERS[name]), value)
        elif name in _TOKENS:
            tokens = value if isinstance(value, list | tuple) else [value]
            _require(all(map(_is_whole, tokens)), name, "token ids", value)
        elif name == "stop_strings":
            stops = value if isinstance(value, list | tuple) else [value]
            _require(all(isinstance(stop, str) and stop for stop in stops), name, "texts of some letters each", value)
        elif name == "exponential_decay_length_penalty":
            _require(_is_decay(value), name, "a whole number and a number", value)
        elif name in _FUNCTIONS:
            _require(callable(value), name, "a function", value)
        elif name in _PARTS:
            _require(all(hasattr(value, part) for part in _PARTS[name]), name, f"a {name.partition('_')[0]}", value)
    for name in _FLOATS:  # transformers asks for the type
        if _is_number(checked.get(name)):
            checked[name] = float(checked[name])
    temperature = checked.get("temperature")
    if temperature is not None and 0 < temperature < _COLDEST:
        raise QueryError(f"a temperature of at least {_COLDEST}", repr(temperature), "Leave do_sample out instead.")
    if (seed := checked.get("seed")) is not None and seed > _LARGEST_SEED:
        raise QueryError(f"a seed of at most {_LARGEST_SEED}", repr(seed)[:60], "Give a smaller one.")
    return checked


def require_function(function: Callable[..., Any] | None, name: str) -> None:
    """Raise `QueryError` for what cannot be called."""
    if function is not None:
        _require(callable(function), name, "a function", function)


def _require(fits: bool, name: str, expected: str, value: Any) -> None:
    if not fits:
        raise QueryError(f"{expected} as {name}", repr(value)[:60], "Mend the settings.")


def _bounded(what: str, least: float) -> str:
    return what if least < -(1 << 62) else f"{what} of at least {least:g}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_decay(value: Any) -> bool:
    """Whether a value is where a penalty begins, and how it grows."""
    return isinstance(value, list | tuple) and len(value) == 2 and _is_whole(value[0]) and _is_number(value[1])


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return not math.isnan(float(value))
    except OverflowError:
        return False
