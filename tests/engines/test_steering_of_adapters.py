"""The field `glider` beside an adapter of the server's own, where vLLM looks up a model's name."""

from types import SimpleNamespace
from typing import Any

import pytest

from glider.engines.vllm import replies

from .conftest import needs_vllm

pytestmark = needs_vllm


def looked_up(adapter: Any, front: Any, **extra: Any) -> Any:
    from glider.engines.vllm.requests import FRONT, _maybe_get_adapters

    serving = SimpleNamespace(models=SimpleNamespace(input_processor=SimpleNamespace(**{FRONT: front})))
    request = SimpleNamespace(model="mine", model_extra=extra)
    return _maybe_get_adapters(lambda self, request: adapter)(serving, request)


def test_nothing_steers_an_adapter_of_the_servers_own() -> None:
    """The field was ignored."""
    from vllm.exceptions import VLLMValidationError

    adapter, front = object(), SimpleNamespace()
    with pytest.raises(VLLMValidationError, match="decides nothing beside an adapter"):
        looked_up(adapter, front, glider={"verdict": "base"})
    token = replies._steering.set({"verdict": "base"})  # of a request whose own fields vLLM drops
    try:
        with pytest.raises(VLLMValidationError, match="decides nothing beside an adapter"):
            looked_up(adapter, front)
    finally:
        replies._steering.reset(token)
    assert looked_up(adapter, front) is adapter
    assert looked_up(adapter, None, glider={"verdict": "base"}) is adapter  # no pool is served
