"""`--mode route` inside vLLM: greedy tokens are those of the library, however vLLM batches and caches."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import load

from .conftest import needs_vllm, opened
from .requests_of_three_kinds import TEXTS, TOKENS, ask, counted, rows_of, tokens_of

pytestmark = [*needs_vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def routing() -> Iterator[Any]:
    with opened(abstain=False, engine={"disable_log_stats": False}) as model:
        yield model


def test_one_mixed_batch_and_the_prefix_cache(routing: Any, library: RoutedModel, wanted: list) -> None:
    rows = rows_of(library)
    assert tokens_of(ask(routing, rows)) == wanted
    before = counted(routing.llm, "vllm:prefix_cache_hits")
    assert tokens_of(ask(routing, rows)) == wanted  # now of the cache
    assert counted(routing.llm, "vllm:prefix_cache_hits") > before


def test_without_the_salt_of_its_condition_a_request_reads_anothers_cache(
    routing: Any, library: RoutedModel, wanted: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glider.engines.vllm.front.salt", lambda row, parts, client: "the same for all")
    routing.llm.reset_prefix_cache()
    rows = rows_of(library)
    wrong = 0
    for i in range(len(TEXTS)):  # one after the other, so that each finds what the one before left
        for place in range(i, len(rows), len(TEXTS)):
            wrong += tokens_of(ask(routing, [rows[place]])) != [wanted[place]]
    assert wrong > 5
    routing.llm.reset_prefix_cache()


def test_the_library_and_vllm_give_the_same_answers(routing: Any, library: RoutedModel) -> None:
    queries = [*TEXTS[:4], Query(TEXTS[4], verdict="base")]
    for answer, expected in zip(
        routing.generate(queries, max_new_tokens=TOKENS), library.generate(queries, max_new_tokens=TOKENS), strict=True
    ):
        assert (answer.text, answer.token_ids, answer.finish_reason) == (
            expected.text,
            expected.token_ids,
            expected.finish_reason,
        )
        assert answer.alpha == expected.alpha and answer.global_scores == pytest.approx(expected.global_scores)


def test_likelihoods_are_the_librarys(routing: Any, library: RoutedModel) -> None:
    choices = [["positive", "negative"], ["Italy", "the Mediterranean Sea"]]
    queries = [TEXTS[2], TEXTS[1]]
    got, _ = routing.score_many(queries, choices)
    expected, _ = library.score_many(queries, choices)
    for row, other in zip(got, expected, strict=True):
        assert [one.choice for one in row] == [one.choice for one in other]
        assert [one.tokens for one in row] == [one.tokens for one in other]
        values = [one.log_likelihood for one in row]
        assert values == pytest.approx([one.log_likelihood for one in other], abs=2e-3)


def test_chunked_prefill(library: RoutedModel, wanted: list) -> None:
    engine = {"max_num_batched_tokens": 24, "max_num_seqs": 24, "enable_chunked_prefill": True}
    with opened(abstain=False, engine=engine) as model:
        assert tokens_of(ask(model, rows_of(library))) == wanted


def test_preemption(library: RoutedModel, wanted: list) -> None:
    engine: dict[str, Any] = {"num_gpu_blocks_override": 17, "enable_prefix_caching": False}
    engine |= {"disable_log_stats": False}
    rows = rows_of(library)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))  # the long ones fill the cache, and grow
    with opened(abstain=False, engine=engine) as model:
        got = tokens_of(ask(model, [rows[i] for i in order], ignore_eos=True))  # none ends before it has grown
        assert [one[: len(wanted[i])] for one, i in zip(got, order, strict=True)] == [wanted[i] for i in order]
        assert counted(model.llm, "vllm:num_preemptions") > 0


def test_adapters_beside_the_pool(library: RoutedModel, wanted: list) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    engine = {"enable_lora": True, "max_lora_rank": 8}
    with opened(abstain=False, engine=engine) as model:
        rows = rows_of(library)
        assert tokens_of(ask(model, rows)) == wanted
        expert = library.pool["paws"]
        prompt = {"prompt_token_ids": model.prompt.prompt_ids(model.tokenizer, TEXTS[5])}
        params = SamplingParams(temperature=0, max_tokens=TOKENS)
        adapter = LoRARequest("paws", 1, str(expert.directory))
        alone = model.llm.generate([prompt], params, lora_request=adapter, use_tqdm=False)
        (single,) = load(router="single:paws").generate([TEXTS[5]], max_new_tokens=TOKENS)
        assert tokens_of(alone) == [single.token_ids]  # the adapter alone answers


def test_torch_compile(library: RoutedModel, wanted: list) -> None:
    with opened(abstain=False, engine={"enforce_eager": False}) as model:
        assert model.llm.llm_engine.vllm_config.compilation_config.mode > 0
        assert tokens_of(ask(model, rows_of(library))) == wanted


def test_a_base_of_other_weights_is_refused(wide_llama: Any, make_wide_pool: Any, tmp_path: Any) -> None:
    import safetensors.torch

    from glider.errors import BaseModelError

    pool = make_wide_pool()
    other = tmp_path / "other"
    shutil.copytree(wide_llama, other)
    weights = safetensors.torch.load_file(other / "model.safetensors")
    weights["model.embed_tokens.weight"] += 0.5
    safetensors.torch.save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseModelError, match="other weights"), opened(str(pool.path), base=str(other), abstain=False):
        pass


def test_random_experts_of_every_site_and_a_layer_that_is_not_called(
    wide_llama: Any, make_wide_pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glider.errors import EngineError

    pool = make_wide_pool(experts=4, rank=4)
    texts = ["sort 3 1 2", "What is the capital of France, and since when?", "hi"]
    expected = load(str(wide_llama), str(pool.path), router="phatgoose").generate(texts, max_new_tokens=TOKENS)
    with opened(str(pool.path), base=str(wide_llama), router="phatgoose") as model:
        answers = model.generate(texts, max_new_tokens=TOKENS)
        assert [one.token_ids for one in answers] == [one.token_ids for one in expected]
    monkeypatch.setattr("glider.engines.vllm.sites.SegmentedOutputs.add", lambda self, y, x: None)
    wanted = "every routed layer called"
    with pytest.raises(EngineError, match=wanted), opened(str(pool.path), base=str(wide_llama), router="phatgoose"):
        pass
