"""The describer `local`: an instruct model on this machine, read by transformers."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from glider.config import Config
from glider.errors import BaseModelError, MissingDependency, first_line
from glider.experts.token_ids import tokenizer_faults
from glider.files.gguf_header import require_gguf
from glider.files.opening import from_home
from glider.instructions.describers import Written, describer
from glider.progress import Tick

if TYPE_CHECKING:
    from glider.inference.base_model import BaseModel

_WEIGHTS = ("*.safetensors", "*.gguf", "config.json", "tokenizer.json")


@describer("local")
class LocalDescriber(Config):
    """A transformers model by directory or hub id, or a GGUF file, with its chat template, greedy."""

    argument: str = Field(min_length=1, description="Directory, hub id, or path of a .gguf file.")
    max_new_tokens: int = Field(96, ge=8, description="Longest reply, in tokens.")
    device: str = Field("cpu", description="Where it runs.")

    @property
    def name(self) -> str:
        path = from_home(self.argument)
        return f"local:{path.resolve().name if path.exists() else self.argument}"  # a path says nothing elsewhere

    @property
    def makes(self) -> dict[str, Any] | None:
        return {"describer": "local", "files": _fingerprint(self.argument), "max_new_tokens": self.max_new_tokens}

    def write(self, prompts: Sequence[str], tick: Tick = lambda done: None) -> list[Written]:
        written = []
        for done, prompt in enumerate(prompts, start=1):
            try:
                written.append(self._answer(prompt))
            except Exception as fault:  # no model, no memory, a template that refuses: this query goes on without
                written.append(Written(fault=f"{self.name}: {first_line(fault)}"))
            tick(done)
        return written

    def _answer(self, prompt: str) -> Written:
        import torch

        from glider.experts.prompt_format import PromptFormat

        loaded = self._loaded
        model, tokenizer = loaded.model, loaded.tokenizer
        ids = PromptFormat.of(model, tokenizer).prompt_ids(tokenizer, prompt)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and len(ids) + self.max_new_tokens > limit:
            return Written(fault=f"{self.name} reads {limit} tokens; the prompt has {len(ids)}", tokens_in=len(ids))
        inputs = torch.tensor([ids], device=model.device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = output[0, 1 if model.config.is_encoder_decoder else len(ids) :]
        text = tokenizer.decode(new, skip_special_tokens=True)
        return Written(text, tokens_in=len(ids), tokens_out=len(new))

    @cached_property
    def _loaded(self) -> "BaseModel":
        from glider.inference.base_model import load_base

        if self.argument.endswith(".gguf"):
            return _load_gguf(from_home(self.argument), self.device)
        return load_base(self.argument, device=self.device)


def _load_gguf(path: Path, device: str) -> "BaseModel":
    import importlib.util

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from glider.experts.base_identity import identify
    from glider.inference.base_model import NO_FOREIGN_CODE, BaseModel

    if importlib.util.find_spec("gguf") is None:
        raise MissingDependency("gguf", f"read {path.name}", "pip install 'glider-moe[demo]'")
    try:
        require_gguf(path)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, **NO_FOREIGN_CODE
        )
        with tokenizer_faults():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, **NO_FOREIGN_CODE)
    except Exception as fault:  # of transformers, for a header of another form, anything
        raise BaseModelError(
            f"a GGUF model at {path}", first_line(fault), "Give a model that transformers can read."
        ) from fault
    model.eval().to(device)
    return BaseModel(model, tokenizer, identify(model, path.name))


def _fingerprint(argument: str) -> Any:
    """What tells one state of a model's files from another without reading them: names, sizes and times."""
    path = from_home(argument)
    if not path.exists():
        return argument
    files = [path] if path.is_file() else sorted(file for pattern in _WEIGHTS for file in path.glob(pattern))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
