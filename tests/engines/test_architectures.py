"""Bases whose fused layers vLLM has in the order of their files are served, others refused before they are."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glider.errors import EngineError, KernelError
from glider.inference.spec import load

from .. import conftest as helpers
from .conftest import needs_vllm, opened

pytestmark = [*needs_vllm, pytest.mark.slow]
PROMPTS = ["sort 3 1 2", "What is the capital of France?", "a film " * 20, "ok"]
COMMON: dict[str, Any] = {"vocab_size": 259, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
COMMON |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
SETTINGS: dict[str, dict[str, Any]] = {
    "bloom": {},
    "falcon": {"alibi": False, "multi_query": False, "bias": False, "max_position_embeddings": 512},
    "gpt2": {"n_positions": 512},
    "phi3": {"intermediate_size": 96, "max_position_embeddings": 512},
}


def base(kind: str, directory: Path) -> Path:
    """A random base of two layers, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **COMMON, **SETTINGS[kind])
    AutoModelForCausalLM.from_config(config).eval().save_pretrained(directory)
    helpers.byte_tokenizer(chat=True).save_pretrained(directory)
    return directory


def sites_of(model: Any) -> dict[str, Any]:
    """Also those of GPT-2, whose layers are named by what they compute, not linear."""
    from transformers.pytorch_utils import Conv1D

    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            found[name] = SimpleNamespace(in_features=module.nx, out_features=module.nf)
    return {**LINEAR_SITES(model), **found}


LINEAR_SITES = helpers.linear_sites


@pytest.mark.parametrize("kind", ["gpt2", "phi3"])
def test_one_site_that_is_a_layer_of_several_parts(
    kind: str, make_pool: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helpers, "linear_sites", sites_of)
    directory = base(kind, tmp_path / kind)
    pool = make_pool(directory, profile=True)
    expected = load(str(directory), pool.path, abstain=False).generate(PROMPTS, max_new_tokens=12)
    bare = load(str(directory), pool.path, router="base").generate(PROMPTS, max_new_tokens=12)
    with opened(str(pool.path), base=str(directory), abstain=False) as model:
        answers = model.generate(PROMPTS, max_new_tokens=12)
    assert [one.token_ids for one in answers] == [one.token_ids for one in expected]
    assert [one.token_ids for one in bare] != [one.token_ids for one in expected]


@pytest.mark.parametrize("kind", ["bloom", "falcon"])
def test_a_layer_that_vllm_has_in_another_order_is_refused(
    kind: str, make_pool: Callable[..., Any], tmp_path: Path
) -> None:
    """Experts' outputs went to other heads: every answer was another than the library's, and nothing told."""
    directory = base(kind, tmp_path / kind)
    pool = make_pool(directory, profile=True)
    wanted = r"query_key_value in the order of the base's files"
    with pytest.raises(EngineError, match=wanted), opened(str(pool.path), base=str(directory), abstain=False):
        pass


def test_a_kernel_that_cannot_run_is_told_before_the_first_request(wide_llama: Path, make_wide_pool: Any) -> None:
    """The first request ended the engine."""
    settings: dict[str, Any] = {"base": str(wide_llama), "abstain": False, "dtype": "float16", "kernel": "native"}
    with pytest.raises(KernelError, match="float16"), opened(str(make_wide_pool().path), **settings):
        pass


def test_a_layer_that_is_given_some_tokens_of_a_pass_is_refused(
    wide_llama: Path, make_wide_pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base alone answered those, in silence; on a GPU with rows of others."""
    from vllm.model_executor.models.llama import LlamaMLP

    before = LlamaMLP.forward
    monkeypatch.setattr(
        LlamaMLP, "forward", lambda self, x: torch.cat([before(self, part.contiguous()) for part in x.split(4)])
    )
    settings: dict[str, Any] = {"base": str(wide_llama), "abstain": False}
    with pytest.raises(EngineError, match="4 where the pass has 8"), opened(str(make_wide_pool().path), **settings):
        pass
