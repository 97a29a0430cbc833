"""Queries that begin alike and are routed otherwise: none is answered from what another left in the prefix cache."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from glider.inference.queries import Query
from glider.inference.spec import load

from .conftest import needs_vllm, opened
from .requests_of_three_kinds import counted

pytestmark = [*needs_vllm, pytest.mark.slow]
TOKENS = 40  # more than a block of the cache
SHARED = "Read this with care, and answer in plain words that a child of ten could read aloud to an aunt. " * 2
ENDS = ("sort 3 1 2", "What is the capital of France?", "ok", "a film, a film!", "Where does the Nile end?")
QUERIES = [*(f"{SHARED}{end}" for end in ENDS), *(Query(f"{SHARED}{end}", verdict="base") for end in ENDS[:2])]
ROUTERS: dict[str, dict[str, Any]] = {
    "glider": {"p": 0.0, "gamma": 30.0, "beta": 10.0},  # a term of weight, so that it matters which
    "retrieval": {"by": "examples"},  # one expert for all tokens of a query
}
TIGHT = {"max_num_batched_tokens": 40, "max_num_seqs": 8, "num_gpu_blocks_override": 24}
TIGHT |= {"enable_chunked_prefill": True}


@pytest.fixture(params=ROUTERS)
def settings(request: pytest.FixtureRequest, wide_llama: Any, make_wide_pool: Any) -> dict[str, Any]:
    pool = make_wide_pool(experts=4)
    router = request.param
    return {
        "pool": str(pool.path),
        "base": str(wide_llama),
        "router": router,
        "settings": ROUTERS[router],
        "abstain": False,
    }


@pytest.fixture
def alone(settings: dict[str, Any]) -> list[tuple[int, ...]]:
    """What the library answers to each query by itself."""
    library = load(**settings)
    answers = [library.generate([query], max_new_tokens=TOKENS)[0].token_ids for query in QUERIES]
    assert len(set(answers)) == len(answers)
    return answers


def asked(model: Any, places: list[int]) -> list[tuple[int, ...]]:
    return [one.token_ids for one in model.generate([QUERIES[i] for i in places], max_new_tokens=TOKENS)]


def test_one_after_the_other_and_at_once(
    settings: dict[str, Any], alone: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = list(range(len(QUERIES)))
    with opened(engine={"disable_log_stats": False}, **settings) as model:
        for place in [*places, *reversed(places)]:
            assert asked(model, [place]) == [alone[place]]
        before = counted(model.llm, "vllm:prefix_cache_hits")
        assert before > 0
        for order in (places, places[::-1], [*places, *places]):
            assert asked(model, order) == [alone[place] for place in order]
            model.llm.reset_prefix_cache()  # from the second on none is in it
        monkeypatch.setattr("glider.engines.vllm.front.salt", lambda row, parts, client: "the same for all")
        wrong = sum(asked(model, [place]) != [alone[place]] for place in places)
        assert wrong >= 2  # else nothing was shown


def test_in_a_small_cache_with_chunks_and_requests_that_end_early(
    settings: dict[str, Any], alone: list[tuple[int, ...]]
) -> None:
    with opened(engine={**TIGHT, "disable_log_stats": False}, **settings) as model:
        chance = random.Random(0)
        ended = dict(_of_a_busy_engine(model, [chance.randrange(len(QUERIES)) for _ in range(80)], chance))
        assert 30 < len(ended) < 70 and {place for place, _ in ended.values()} == set(range(len(QUERIES)))
        for place, tokens in ended.values():
            assert tokens == alone[place]
        assert counted(model.llm, "vllm:num_preemptions") > 0 and counted(model.llm, "vllm:prefix_cache_hits") > 0
        for place in range(len(QUERIES)):
            assert asked(model, [place]) == [alone[place]]


def _of_a_busy_engine(
    model: Any, places: list[int], chance: random.Random
) -> Iterator[tuple[str, tuple[int, tuple[int, ...]]]]:
    """Requests that come at any time, of which some are aborted at any time; those that are not, as they end."""
    from vllm import SamplingParams

    engine = model.llm.llm_engine
    batch = model.requests.of(QUERIES, TOKENS, False, {})
    waiting, running = list(enumerate(places)), {}
    while waiting or engine.has_unfinished_requests():
        if waiting and chance.random() < 0.4:
            number, place = waiting.pop()
            prompt = {"prompt_token_ids": batch.rows[place]}
            engine.add_request(str(number), prompt, SamplingParams(**batch.settings[place]))
            running[str(number)] = place
        if running and chance.random() < 0.06:
            name = chance.choice(sorted(running))
            engine.abort_request([name])
            del running[name]
        for output in engine.step():
            if output.finished and output.request_id in running:
                yield output.request_id, (running.pop(output.request_id), tuple(output.outputs[0].token_ids))
