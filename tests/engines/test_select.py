"""`--mode select` inside vLLM: one expert as an adapter of vLLM's, or the base, as the library answers by them."""

from collections.abc import Iterator
from typing import Any

import pytest

from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import load

from .conftest import needs_vllm, opened

pytestmark = [*needs_vllm, pytest.mark.slow]
FITS = "Put the concepts together to form a sentence: dog, beach, ball."
FITS_TOO = "What is the question about? How far is it from Denver to Aspen?"
STRANGER = "What is the capital of Egypt?"
UNSURE = "Review: a dull, lifeless film. Sentiment?"
TEXTS = [FITS, STRANGER, UNSURE, FITS_TOO, "Tell me a joke about cats."]


@pytest.fixture(scope="module")
def selecting() -> Iterator[Any]:
    with opened("demo", mode="select") as model:
        yield model


@pytest.fixture(scope="module")
def alone() -> Any:
    """`alone(expert, texts)`: greedy tokens by one expert at full weight, or by the bare base."""

    def answers(expert: str | None, text: str, tokens: int = 24) -> tuple[int, ...]:
        model: RoutedModel = load(router="base" if expert is None else f"single:{expert}")
        (answer,) = model.generate([text], max_new_tokens=tokens)
        return answer.token_ids

    return answers


def test_every_query_is_answered_by_its_expert_alone_or_by_the_base(selecting: Any, alone: Any) -> None:
    answers = selecting.generate(TEXTS, max_new_tokens=24)
    condition = selecting.condition(TEXTS)
    experts = [selecting.front.nearest(condition.rows([i]), False) for i in range(len(TEXTS))]
    assert [answer.verdict for answer in answers][:3] == ["fits", "stranger", "unsure"]
    assert experts[0] == "common_gen" and experts[1] is None and experts[2] == "rotten_tomatoes"
    for text, expert, answer in zip(TEXTS, experts, answers, strict=True):
        assert answer.token_ids == alone(expert, text), (text, expert)
    assert alone("common_gen", FITS) != alone(None, FITS)  # else nothing was shown


def test_the_text_of_a_request_decides_in_whatever_form_it_comes(selecting: Any) -> None:
    from vllm import SamplingParams

    wanted = [answer.token_ids for answer in selecting.generate([FITS, STRANGER], max_new_tokens=16)]
    params = SamplingParams(temperature=0, max_tokens=16)
    chats = [[{"role": "user", "content": text}] for text in (FITS, STRANGER)]
    by_chat = selecting.llm.chat(chats, params, use_tqdm=False)
    tokens = [{"prompt_token_ids": selecting.prompt.prompt_ids(selecting.tokenizer, text)} for text in (FITS, STRANGER)]
    by_tokens = selecting.llm.generate(tokens, params, use_tqdm=False)
    for outputs in (by_chat, by_tokens):
        assert [tuple(output.outputs[0].token_ids) for output in outputs] == wanted
    adapters = [output.lora_request and output.lora_request.lora_name.split("/")[1] for output in by_chat]
    assert adapters == ["common_gen", None]


def test_overrides_and_counts(selecting: Any, alone: Any) -> None:
    from prometheus_client import REGISTRY

    def count(verdict: str) -> float:
        return REGISTRY.get_sample_value("glider:requests_total", {"pool": "demo", "verdict": verdict}) or 0.0

    before = count("fits"), count("stranger")
    routed, bare = selecting.generate(
        [Query(STRANGER, verdict="route"), Query(FITS, verdict="base")], max_new_tokens=12
    )
    assert bare.token_ids == alone(None, FITS, 12)
    expert = selecting.front.nearest(selecting.condition([Query(STRANGER, verdict="route")]), False)
    assert expert is not None and routed.token_ids == alone(expert, STRANGER, 12)
    assert (count("fits"), count("stranger")) == (before[0] + 1, before[1] + 1)


def test_a_query_that_shall_be_routed_is_not_the_bases_where_the_unsure_are(
    selecting: Any, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was without a server, though not of one."""
    settings = selecting.front.settings.model_copy(update={"unsure": "base"})
    monkeypatch.setattr(selecting.front, "settings", settings)
    free, forced = selecting.generate([UNSURE, Query(UNSURE, verdict="route")], max_new_tokens=12)
    assert free.token_ids == alone(None, UNSURE, 12)
    assert forced.token_ids == alone("rotten_tomatoes", UNSURE, 12) != free.token_ids


def test_a_client_cannot_set_what_only_the_server_sets(selecting: Any) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    params = SamplingParams(extra_args={"glider": {"term": [0.0] * 8}})
    with pytest.raises(VLLMValidationError, match="not the client's"):
        selecting.llm.generate([FITS], params, use_tqdm=False)
    (answer,) = selecting.generate([FITS], max_new_tokens=4)  # the engine goes on
    assert answer.verdict == "fits"


def test_an_adapter_of_the_servers_own_is_not_taken_for_an_expert(selecting: Any, alone: Any) -> None:
    """vLLM numbers a server's adapters from 1, as the experts were: `mine` answered for the pool's first expert."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    mine = LoRARequest("mine", 1, str(selecting.front.pool["paws"].directory))
    prompt = {"prompt_token_ids": selecting.prompt.prompt_ids(selecting.tokenizer, FITS)}
    params = SamplingParams(temperature=0, max_tokens=24)
    (output,) = selecting.llm.generate([prompt], params, lora_request=mine, use_tqdm=False)
    assert tuple(output.outputs[0].token_ids) == alone("paws", FITS)
    assert selecting.front.names[0] == "rotten_tomatoes"
    (answer,) = selecting.generate([UNSURE], max_new_tokens=24)
    assert answer.token_ids == alone("rotten_tomatoes", UNSURE) != alone("paws", UNSURE)


def test_all_steps_of_a_beam_search_are_one_request(selecting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of each beam was judged anew, by the template and what was written so far."""
    from vllm.sampling_params import BeamSearchParams

    chosen = []
    choose = selecting.front.choose
    monkeypatch.setattr(
        "glider.engines.vllm.front.Front.choose", lambda self, request: chosen.append(request.text) or choose(request)
    )
    ids = selecting.prompt.prompt_ids(selecting.tokenizer, FITS)
    params = BeamSearchParams(beam_width=1, max_tokens=12)
    (output,) = selecting.llm.beam_search([{"prompt_token_ids": ids}], params)
    assert chosen == [FITS]
    (answer,) = selecting.generate([FITS], max_new_tokens=12)
    assert tuple(output.sequences[0].tokens[len(ids) :])[: len(answer.token_ids)] == answer.token_ids
