"""Requests beyond one greedy answer to one text: answered as the library would, or refused; the engine goes on."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from glider.inference.queries import Query
from glider.inference.spec import load

from .conftest import needs_vllm, opened

pytestmark = [*needs_vllm, pytest.mark.slow]
TOKENS = 12
PROMPTS = ["sort 3 1 2", "What is the capital of France?", "a film " * 20, "ok"]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, wide_llama: Any, made_pools: Any, embedder_identity: Any) -> dict:
    settings = {"profile": True, "embedder": embedder_identity}
    pool = made_pools(wide_llama, 3, 0, settings)
    return {"pool": str(pool), "base": str(wide_llama), "router": "glider", "abstain": False}


@pytest.fixture(scope="module")
def library(spec: dict[str, Any]) -> Any:
    return load(**spec)


@pytest.fixture(scope="module")
def model(spec: dict[str, Any]) -> Iterator[Any]:
    with opened(engine={"enable_prompt_embeds": True}, **spec) as model:
        yield model


def params(model: Any, prompt: Any, **settings: Any) -> tuple[dict[str, Any], Any]:
    """A prompt in tokens, and vLLM's parameters for it with its row."""
    from vllm import SamplingParams

    batch = model.requests.of([prompt], TOKENS, False, {})
    return {"prompt_token_ids": batch.rows[0]}, SamplingParams(**{**batch.settings[0], **settings})


def still_answers(model: Any, library: Any) -> None:
    got = model.generate(PROMPTS, max_new_tokens=TOKENS)
    assert [one.token_ids for one in got] == [one.token_ids for one in library.generate(PROMPTS, max_new_tokens=TOKENS)]


def test_several_answers_to_one_prompt(model: Any, library: Any) -> None:
    """All are routed as one is: each sampled one equals that of its seed alone."""
    still_answers(model, library)
    for prompt in (PROMPTS[1], Query(PROMPTS[1], verdict="base")):
        ids, several = params(model, prompt, n=3, temperature=1.0, seed=7)
        (output,) = model.llm.generate([ids], [several], use_tqdm=False)
        got = [tuple(one.token_ids) for one in sorted(output.outputs, key=lambda one: one.index)]
        single = [params(model, prompt, temperature=1.0, seed=7 + i)[1] for i in range(3)]
        alone = model.llm.generate([ids] * 3, single, use_tqdm=False)
        assert got == [tuple(one.outputs[0].token_ids) for one in alone] and len(set(got)) == 3


def test_a_beam_search_is_routed_through_all_its_steps(model: Any, library: Any) -> None:
    """The likelihood of every beam is the library's of the same tokens."""
    from vllm.sampling_params import BeamSearchParams

    rows = [library.prompt.prompt_ids(library.tokenizer, text) for text in PROMPTS[:2]]
    search = BeamSearchParams(beam_width=3, max_tokens=8, ignore_eos=True)
    outputs = model.llm.beam_search([{"prompt_token_ids": ids} for ids in rows], search)
    for text, ids, output in zip(PROMPTS, rows, outputs, strict=False):
        assert len({tuple(beam.tokens) for beam in output.sequences}) == 3
        for beam in output.sequences:
            whole = torch.tensor([beam.tokens])
            with torch.inference_mode(), library.attached.routing(library.condition([text])):
                scores = library.model(whole).logits[0].log_softmax(dim=-1)
            expected = sum(float(scores[place - 1, whole[0, place]]) for place in range(len(ids), whole.shape[1]))
            assert beam.cum_logprob == pytest.approx(expected, abs=2e-3)


def test_prompts_as_embeddings_are_refused(model: Any, library: Any) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    vectors, greedy = torch.zeros(4, 64), SamplingParams(temperature=0, max_tokens=4)
    with pytest.raises(VLLMValidationError, match="answers text"):
        model.llm.generate([{"prompt_embeds": vectors}], greedy, use_tqdm=False)
    still_answers(model, library)


@pytest.mark.parametrize("more", ["prompt_embeds", "multi_modal_data"])
def test_raw_prompts_that_are_not_text_alone_are_refused(more: str, model: Any, library: Any) -> None:
    """Tokens beside the embeddings decided, and the embeddings were answered."""
    from vllm.exceptions import VLLMValidationError

    ids, greedy = params(model, PROMPTS[0])
    vectors = torch.zeros(len(ids["prompt_token_ids"]), 64)
    value: Any = vectors if more == "prompt_embeds" else {"image": vectors}
    with pytest.raises(VLLMValidationError, match="answers text"):
        model.llm.llm_engine.add_request("odd", {**ids, more: value}, greedy)
    still_answers(model, library)


def test_a_request_whose_text_comes_in_pieces_is_refused(model: Any, library: Any) -> None:
    """Each piece was routed by itself, all cached under the first one's condition."""
    from vllm.exceptions import VLLMValidationError

    processor = model.llm.llm_engine.input_processor
    ids, greedy = params(model, PROMPTS[0])
    with pytest.raises(VLLMValidationError, match="in pieces"):
        processor.process_inputs("odd", ids, greedy, supported_tasks=("generate",), resumable=True)
    still_answers(model, library)


def test_tasks_of_pooling_are_refused(model: Any, library: Any) -> None:
    from vllm import PoolingParams
    from vllm.exceptions import VLLMValidationError

    ids, _ = params(model, PROMPTS[0])
    with pytest.raises(VLLMValidationError, match="pooling and embeddings are not served"):
        model.llm.llm_engine.add_request("odd", ids, PoolingParams(task="embed"))
    for task in (model.llm.embed, model.llm.encode, model.llm.classify):
        with pytest.raises(ValueError):
            task([ids])
    still_answers(model, library)


def test_an_adapter_that_the_engine_cannot_have_is_refused(model: Any, library: Any) -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.lora.request import LoRARequest

    ids, greedy = params(model, PROMPTS[0])
    adapter = LoRARequest("mine", 1, str(library.pool["e0"].directory))
    greedy.extra_args = None
    with pytest.raises(VLLMValidationError, match="LoRA is not enabled"):
        model.llm.generate([ids], [greedy], lora_request=adapter, use_tqdm=False)
    still_answers(model, library)


def test_guesses_of_a_draft_model(spec: dict[str, Any], library: Any, wide_llama: Any) -> None:
    """The draft is not routed, what it guesses is judged by the routed model."""
    from .requests_of_three_kinds import counted

    speculative = {"method": "draft_model", "model": str(wide_llama), "num_speculative_tokens": 2}
    with opened(engine={"speculative_config": speculative, "disable_log_stats": False}, **spec) as model:
        still_answers(model, library)
        mixed = [*PROMPTS, *(Query(text, verdict="base") for text in PROMPTS)]
        expected = [library.generate([query], max_new_tokens=TOKENS)[0].token_ids for query in mixed]
        assert [one.token_ids for one in model.generate(mixed, max_new_tokens=TOKENS)] == expected
        assert counted(model.llm, "vllm:spec_decode_num_accepted_tokens") > 0
