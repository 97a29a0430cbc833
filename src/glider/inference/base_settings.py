"""Types of a base's settings that transformers looks at in each pass, and nowhere before."""

from collections.abc import Iterator
from typing import Any

from glider.errors import BaseModelError

FLAGS = ("output_hidden_states", "output_attentions", "return_dict", "use_cache")
COUNTS = ("num_hidden_layers", "sliding_window", "attention_chunk_size")


def require_settings(model: Any) -> None:
    """Raise `BaseModelError` for settings of a model's configuration that its first pass would trip over."""
    for config in _configs(model):
        for name in FLAGS:
            _require(name, getattr(config, name, None), "true or false", isinstance(getattr(config, name, None), bool))
        for name in COUNTS:
            value = getattr(config, name, None)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            _require(name, value, "a whole number of at least 0", whole)
        if getattr(config, "return_dict", None) is False:
            _require("return_dict", False, "true, as answers are taken by their names,", False)


def _configs(model: Any) -> Iterator[Any]:
    """The configuration of a model, and that of its part for text where that is another."""
    yield model.config
    if (text := model.config.get_text_config()) is not model.config:
        yield text


def _require(name: str, value: Any, expected: str, fits: bool) -> None:
    if value is not None and not fits:
        remedy = "Mend its config.json: set it, or leave it out."
        raise BaseModelError(f"{expected} as {name} of the base", repr(value)[:60], remedy)
