"""vLLM in this process, where it is installed: `make vllm-test` makes an environment that has it."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from .requests_of_three_kinds import library, wanted

__all__ = ["library", "wanted"]

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process, to look into
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = [
    pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: run `make vllm-test`"),
    pytest.mark.filterwarnings("default"),  # vLLM's own
]
ENGINE = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 36, "kv_cache_memory_bytes": 1 << 29}
ENGINE |= {"block_size": 32}


@contextmanager
def opened(pool: Any = "demo", **settings: Any) -> Iterator[Any]:
    """`glider.engines.vllm.load` with a small engine, closed in the end."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    from glider.engines.vllm import load

    engine = {**ENGINE, **settings.pop("engine", {})}
    model = None
    try:
        model = load(pool, engine=engine, **settings)
        yield model
    finally:
        if model is not None:
            model.close()
        cleanup_dist_env_and_memory()


@pytest.fixture(scope="session")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose heads are as wide as vLLM's attention on the CPU asks: 2 layers, width 64, 2 heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from ..conftest import byte_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    directory = tmp_path_factory.mktemp("bases") / "wide-llama"
    LlamaForCausalLM(config).eval().save_pretrained(directory)
    byte_tokenizer(chat=True).save_pretrained(directory)
    return directory


@pytest.fixture
def make_wide_pool(make_pool: Callable, wide_llama: Path) -> Callable[..., Any]:
    """`make_wide_pool(experts=3, **settings)`: a pool of random experts of that model."""
    return lambda **settings: make_pool(wide_llama, profile=True, **settings)
