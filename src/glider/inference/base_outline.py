"""A base model without its weights: its modules, its tokenizer, and its identity from the few weights that it needs."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from glider.experts.base_identity import identify_weights, identifying_weights
from glider.files.headers import read_header
from glider.files.json_text import read_json
from glider.inference.base_model import (
    NO_FOREIGN_CODE,
    BaseModel,
    architecture_of,
    completed_tokenizer,
    local_path,
    locate,
    require_buildable,
    require_plain_files,
    tokenizer_beside,
)

_ONE, _SEVERAL = "model.safetensors", "model.safetensors.index.json"


def outline_base(base: str) -> BaseModel | None:
    """What `load_base(base)` gives, with the weights left where they are (on the device "meta").

    None where the files do not tell enough: no safetensors on this machine, quantised weights, other names in the files
    than in the model.
    """
    from transformers import AutoConfig

    source, model_id = locate(base)
    require_plain_files(Path(source))
    require_buildable(Path(source))
    try:
        config = AutoConfig.from_pretrained(source, **NO_FOREIGN_CODE)
        if getattr(config, "quantization_config", None) is not None:
            return None
        with torch.device("meta"):
            model = architecture_of(config).from_config(config)
        model.tie_weights()
        weights = _read(source, identifying_weights(model), model.base_model_prefix)
        tokenizer = tokenizer_beside(source, base)
    except Exception:
        return None  # loading the whole model tells what is wrong, if anything is
    if weights is None:
        return None
    identity = identify_weights(model.config.to_dict(), weights, model_id)
    identity = identity.model_copy(update={"path": local_path(base)})
    return BaseModel(model.eval(), completed_tokenizer(tokenizer), identity, source)


def _read(source: str, outline: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor] | None:
    """Weights by their names in the model, from the files that hold them; None where a file has no such weight."""
    first = _cached(source, _ONE)
    index = None if first is not None else _cached(source, _SEVERAL)
    if first is None and index is None:
        return None
    homes: dict[str, Any] = {} if index is None else dict(read_json(index)["weight_map"])
    names = homes.keys() if first is None else read_header(first).shapes.keys()
    weights: dict[str, torch.Tensor] = {}
    for name, weight in outline.items():
        stored = next(
            (one for one in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}") if one in names), None
        )
        file = first if first is not None else stored and _cached(source, str(homes[stored]))
        if stored is None or not file:
            return None
        with safe_open(file, framework="pt") as tensors:
            weights[name] = tensors.get_tensor(stored).float()
        if weights[name].shape != weight.shape:
            return None
    return weights


def _cached(source: str, file: str) -> Path | None:
    """A file of a model on this machine; nothing is downloaded."""
    from transformers.utils.hub import cached_file

    place = cached_file(source, file, local_files_only=True, _raise_exceptions_for_missing_entries=False)
    return None if place is None else Path(place)
