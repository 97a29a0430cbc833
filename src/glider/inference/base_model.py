"""The base model: found by hub id, local path or the name of the embedded one, and always identified."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from glider.config import EMBEDDED_BASE
from glider.errors import BaseModelError
from glider.experts.base_identity import BaseIdentity, identify


@dataclass(frozen=True)
class BaseModel:
    """A transformers model with its tokenizer and identity."""

    model: Any
    tokenizer: Any
    identity: BaseIdentity
    source: str | None = None  # the path or id that it was loaded from


def load_base(base: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> BaseModel:
    """Load a base model by hub id, by local path, or by the name `smollm2-135m` (the embedded one).

    The identity's id is the hub id, the directory's own name for a path (a path says nothing on another machine).
    Raises `BaseModelError` where there is no such model.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    source, model_id = _locate(base)
    try:
        config = AutoConfig.from_pretrained(source)
        architecture = _architecture(config)
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # loading a local model takes under a second; downloads show their own bar
        try:
            model = architecture.from_pretrained(source, dtype=dtype)
        finally:
            if shown:
                logging.enable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as fault:
        raise BaseModelError(
            f"a transformers model at {base}",
            (str(fault).splitlines() or [type(fault).__name__])[0],
            f"Give a hub id, a local path, or {EMBEDDED_BASE} for the embedded model.",
        ) from fault
    model.eval().to(device)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return BaseModel(model, tokenizer, identify(model, model_id), source)


def _locate(base: str) -> tuple[str, str]:
    if base == EMBEDDED_BASE:
        from glider.demo.base import BASE_ID, converted_base

        return str(converted_base()), BASE_ID
    path = Path(base).expanduser()
    if path.exists():
        return str(path), path.resolve().name
    return base, base


def _architecture(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
