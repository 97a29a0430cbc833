"""`--mode route` inside vLLM: greedy tokens are those of the library, however vLLM batches, caches and guesses."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from glider.engines.vllm.requests import Given
from glider.engines.vllm.rows import ARGUMENT, Row
from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import load
from glider.routing.condition import Condition

from .conftest import needs_vllm, opened

pytestmark = [*needs_vllm, pytest.mark.slow]
TOKENS = 16
FIRST = (
    *("Put the concepts together to form a sentence: dog, beach, ball.", "Where does the Nile end?"),
    *("Review: a dull, lifeless film. Sentiment?", "Is this about sport or business? Shares fell on Monday."),
    *("Who wrote the Odyssey?", "Do both mean the same? He left. He went away."),
)
TEXTS = tuple(f"{text} {more}".strip() for more in ("", "Answer briefly, and think of nothing else.") for text in FIRST)
KINDS = ("term", "local", "bare")


@pytest.fixture(scope="module")
def library() -> RoutedModel:
    """The demo pool by transformers, without verdicts: tokens of every query are routed."""
    return load(abstain=False)


def rows_of(model: RoutedModel) -> list[tuple[str, Row | None]]:
    """36 requests: twelve texts, each with its global term, without one, and bare."""
    condition = model.condition(list(TEXTS))
    made: list[tuple[str, Row | None]] = []
    for kind in KINDS:
        for i, text in enumerate(TEXTS):
            row = {"term": Row.of(condition.rows([i])), "local": Row(), "bare": None}[kind]
            made.append((text, row))
    return made


@pytest.fixture(scope="module")
def wanted(library: RoutedModel) -> list[tuple[int, ...]]:
    """The library's greedy tokens of the 36."""
    inputs = library.encoder.batch(library.encoder.rows(list(TEXTS), False, TOKENS))
    answers: list[tuple[int, ...]] = []
    for kind in KINDS:
        condition = {
            "term": library.condition(list(TEXTS)),
            "local": Condition.local(len(TEXTS)),
            "bare": Condition.nobody(len(TEXTS)),
        }[kind]
        with torch.inference_mode(), library.attached.routing(condition):
            output = library.model.generate(
                **inputs, max_new_tokens=TOKENS, do_sample=False, pad_token_id=library.encoder.pad_id
            )
        for row in output[:, inputs["input_ids"].shape[1] :].tolist():
            ends = [place for place, token in enumerate(row) if token in library.encoder.ends()]
            answers.append(tuple(row[: ends[0] + 1] if ends else row))
    groups = [answers[i :: len(TEXTS)] for i in range(len(TEXTS))]
    assert sum(len(set(group)) == 3 for group in groups) >= 6  # else nothing is shown by equality
    return answers


def ask(model: Any, rows: Sequence[tuple[str, Row | None]], tokens: int = TOKENS, **settings: Any) -> list[Any]:
    """What vLLM makes of prompts with these rows."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": model.prompt.prompt_ids(model.tokenizer, text)} for text, _ in rows]
    params = [
        SamplingParams(temperature=0, max_tokens=tokens, extra_args={ARGUMENT: Given(row, None)}, **settings)
        for _, row in rows
    ]
    return model.llm.generate(prompts, params, use_tqdm=False)


def tokens_of(outputs: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(output.outputs[0].token_ids) for output in outputs]


def counted(llm: Any, name: str) -> float:
    """One of vLLM's own counters."""
    return sum(getattr(metric, "value", 0) for metric in llm.get_metrics() if metric.name == name)


@pytest.fixture(scope="module")
def routing() -> Iterator[Any]:
    with opened(abstain=False, engine={"disable_log_stats": False}) as model:
        yield model


def test_one_mixed_batch_and_the_prefix_cache(routing: Any, library: RoutedModel, wanted: list) -> None:
    rows = rows_of(library)
    assert tokens_of(ask(routing, rows)) == wanted
    before = counted(routing.llm, "vllm:prefix_cache_hits")
    again = [
        (text, row) for text, row in rows
    ]  # the same prompts under the same conditions: of the cache, and the same answers
    assert tokens_of(ask(routing, again)) == wanted
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
    engine = {"num_gpu_blocks_override": 60, "block_size": 16, "enable_prefix_caching": False}
    engine |= {"disable_log_stats": False}
    with opened(abstain=False, engine=engine) as model:
        assert tokens_of(ask(model, rows_of(library))) == wanted
        assert counted(model.llm, "vllm:num_preemptions") > 0


def test_ngram_speculation(library: RoutedModel, wanted: list) -> None:
    speculative = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    engine = {"speculative_config": speculative, "disable_log_stats": False}
    with opened(abstain=False, engine=engine) as model:
        assert tokens_of(ask(model, rows_of(library))) == wanted
        assert counted(model.llm, "vllm:spec_decode_num_accepted_tokens") > 0


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
        adapter = LoRARequest("paws", 1, str(expert.path))
        alone = model.llm.generate([prompt], params, lora_request=adapter, use_tqdm=False)
        (single,) = load(router="single:paws").generate([TEXTS[5]], max_new_tokens=TOKENS)
        assert tokens_of(alone) == [single.token_ids]  # the adapter alone answers


def test_torch_compile(library: RoutedModel, wanted: list) -> None:
    with opened(abstain=False, engine={"enforce_eager": False}) as model:
        assert model.llm.llm_engine.vllm_config.compilation_config.mode > 0
        assert tokens_of(ask(model, rows_of(library))) == wanted
