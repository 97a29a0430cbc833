"""A pool in an engine of several workers: each has a part of every layer, or some of the layers."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.inference.model import RoutedModel
from glider.inference.spec import load

from .conftest import needs_vllm, opened
from .requests_of_three_kinds import TEXTS, ask, rows_of, tokens_of
from .served import TOKENS, served

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


ROUTERS: dict[str, dict[str, Any]] = {
    "glider": {},
    "spectr": {},
    "merge": {},
    "lag": {"candidates": 2},  # fewer than there are experts
    "glider+seqr": {},
    "token-choice": {"renormalise": False},
    "mor-lora": {"p": 0.05, "gamma": 2.0, "beta": 1.0},  # some of the prompts are above p, some below
    "hilora": {"global_": "examples", "parts": 5},  # experts of rank one, several for a token
    "arrow": {},
    "retrieval": {"by": "examples"},  # settled before
}


@pytest.mark.parametrize("router", ROUTERS)
def test_workers_that_share_a_head_of_keys(router: str, wide_llama: Any, make_wide_pool: Any) -> None:
    """Two workers, one head of keys and values, which both have."""
    pool, prompts = make_wide_pool(), ["sort 3 1 2", "What is the capital of France?", "a film " * 20, "ok"]
    settings: dict[str, Any] = {"router": router, "settings": ROUTERS[router], "abstain": False}
    expected = load(str(wide_llama), pool.path, **settings).generate(prompts, max_new_tokens=12)
    bare = load(str(wide_llama), pool.path, router="base").generate(prompts, max_new_tokens=12)
    with opened(str(pool.path), base=str(wide_llama), engine={"tensor_parallel_size": 2}, **settings) as model:
        answers = model.generate(prompts, max_new_tokens=12)
    assert [one.token_ids for one in answers] == [one.token_ids for one in expected]
    assert [one.token_ids for one in answers] != [one.token_ids for one in bare]


def test_a_pipeline_of_pairs_of_workers(wide_llama: Any, make_wide_pool: Any) -> None:
    """Two stages of a layer each, and two workers for each of these."""
    pool, prompts = make_wide_pool(), ["sort 3 1 2", "What is the capital of France?", "a film " * 20, "ok"]
    expected = load(str(wide_llama), pool.path, router="glider", abstain=False).generate(prompts, max_new_tokens=12)
    workers = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "enforce_eager": False}
    settings: dict[str, Any] = {"base": str(wide_llama), "router": "glider", "abstain": False}
    with opened(str(pool.path), engine=workers, **settings) as model:
        answers = model.generate(prompts, max_new_tokens=12)
    assert [one.token_ids for one in answers] == [one.token_ids for one in expected]


def test_adapters_beside_a_pool_that_two_workers_share(wide_llama: Any, make_wide_pool: Any) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    pool, prompts = make_wide_pool(), ["sort 3 1 2", "What is the capital of France?"]
    settings: dict[str, Any] = {"router": "glider", "abstain": False}
    expected = load(str(wide_llama), pool.path, **settings).generate(prompts, max_new_tokens=12)
    alone = load(str(wide_llama), pool.path, router="single:e0").generate(prompts, max_new_tokens=12)
    workers = {"tensor_parallel_size": 2, "enable_lora": True, "max_lora_rank": 8}
    with opened(str(pool.path), base=str(wide_llama), engine=workers, **settings) as model:
        rows = [{"prompt_token_ids": model.prompt.prompt_ids(model.tokenizer, text)} for text in prompts]
        adapter = LoRARequest("mine", 1, str(pool["e0"].directory))
        greedy = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=sorted(model.requests.encoder.ends()))
        for _ in range(2):
            assert [one.token_ids for one in model.generate(prompts, max_new_tokens=12)] == [
                one.token_ids for one in expected
            ]
            outputs = model.llm.generate(rows, greedy, lora_request=adapter, use_tqdm=False)
            assert tokens_of(outputs) == [one.token_ids for one in alone]


@pytest.mark.parametrize(("parts", "slices"), [(2, [(16, 16, 32), (16, 16, 32)]), (1, [])])
def test_a_site_of_which_a_worker_has_several_pieces_has_no_place(parts: int, slices: list) -> None:
    """Of gate and up, each a site, the second of two workers has the second half of each; of one site of both (Phi-3's)
    no slice, so that an engine with such a site does not start."""
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear

    from glider.engines.vllm.shards import places_in

    layer: Any = object.__new__(MergedColumnParallelLinear)
    torch.nn.Module.__init__(layer)
    layer.tp_size, layer.tp_rank, layer.input_size = 2, 1, 8
    layer.output_partition_sizes, layer.output_size_per_partition, layer.output_size = [16, 16], 32, 64
    places = list(places_in("gate_up_proj", layer, parts))
    assert [(place.outputs.first, place.outputs.count, place.outputs.whole) for place in places] == slices


def test_engines_side_by_side(tmp_path: Path) -> None:
    """Two engines behind one server, which share out the requests; each takes the rows that the server made."""
    texts = [*TEXTS[:6], "What is the capital of Egypt?", "Name three colours."]
    expected = [one.token_ids for one in load().generate(texts, max_new_tokens=TOKENS)]
    with served("route", tmp_path / "log", "--enforce-eager", "--data-parallel-size", "2") as server:
        with ThreadPoolExecutor(len(texts)) as clients:
            assert list(clients.map(server.tokens, texts)) == expected
        _, metrics = server.ask("/metrics")
    answered = [line for line in metrics.splitlines() if line.startswith("vllm:generation_tokens_total")]
    assert len(answered) == 2 and all(float(line.split()[-1]) > 0 for line in answered)
