"""A pool in an engine of several workers: each has a part of every layer, or some of the layers."""

from typing import Any

import pytest

from glider.inference.model import RoutedModel
from glider.inference.spec import load

from .conftest import needs_vllm, opened
from .requests_of_three_kinds import ask, rows_of, tokens_of

pytestmark = [*needs_vllm, pytest.mark.slow]


@pytest.mark.parametrize(
    "workers",
    [
        {"tensor_parallel_size": 3},  # of nine heads, and three of keys and values
        {"pipeline_parallel_size": 2, "enforce_eager": False},
    ],
    ids=["tensor", "pipeline"],
)
def test_several_workers_answer_as_one(workers: dict[str, Any], library: RoutedModel, wanted: list) -> None:
    with opened(abstain=False, engine=workers) as model:
        assert tokens_of(ask(model, rows_of(library))) == wanted
        assert tokens_of(ask(model, rows_of(library))) == wanted  # now of the cache


@pytest.mark.parametrize("router", ["glider", "spectr", "merge"])
def test_workers_that_share_a_head_of_keys(router: str, wide_llama: Any, make_wide_pool: Any) -> None:
    """Two workers, one head of keys and values, which both have."""
    pool, prompts = make_wide_pool(), ["sort 3 1 2", "What is the capital of France?", "a film " * 20, "ok"]
    expected = load(str(wide_llama), pool.path, router=router, abstain=False).generate(prompts, max_new_tokens=12)
    bare = load(str(wide_llama), pool.path, router="base").generate(prompts, max_new_tokens=12)
    settings: dict[str, Any] = {"router": router, "abstain": False, "base": str(wide_llama)}
    with opened(str(pool.path), engine={"tensor_parallel_size": 2}, **settings) as model:
        answers = model.generate(prompts, max_new_tokens=12)
    assert [one.token_ids for one in answers] == [one.token_ids for one in expected]
    assert [one.token_ids for one in answers] != [one.token_ids for one in bare]
