"""The cache of a pass, under the names that transformers has had for it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from glider.layers.caches import cache_after, cache_among, has_tokens, with_cache


class OfToday:
    def forward(self, input_ids: Any = None, cache: Any = None) -> None: ...


class OfBefore:
    def forward(self, input_ids: Any = None, past_key_values: Any = None) -> None: ...


class StateSpace:
    def forward(self, input_ids: Any = None, cache_params: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (OfToday(), "cache"),
        (OfBefore(), "past_key_values"),
        (StateSpace(), "cache_params"),
    ],
)
def test_a_model_is_given_its_cache_by_its_own_name(model: Any, name: str) -> None:
    cache = DynamicCache()
    assert with_cache(model, cache) == {name: cache}
    assert cache_among({"input_ids": 1, **with_cache(model, cache)}) is cache
    assert cache_after(SimpleNamespace(**{name: cache})) is cache


def test_without_a_cache() -> None:
    assert cache_among({"cache": None, "past_key_values": None}) is None
    assert cache_after((torch.zeros(1),)) is None and cache_after(SimpleNamespace(cache=None)) is None
    assert not has_tokens(None) and not has_tokens(DynamicCache())
    assert has_tokens(object())  # one that does not tell


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_model_of_this_transformers_goes_on(wrapped: bool) -> None:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    if wrapped:  # by PEFT, whose own forward names no cache
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits[:, -1]
        cache = cache_after(model(input_ids=ids[:, :3], use_cache=True))
        assert has_tokens(cache)
        rest = model(input_ids=ids[:, 3:], **with_cache(model, cache), use_cache=True)
    torch.testing.assert_close(rest.logits[:, -1], whole)
    assert cache_after(rest) is cache
