"""Settings of `generate` are honoured or refused, and each row of a batch is answered as it is alone."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    TextStreamer,
)

from glider.errors import QueryError
from glider.inference.model import RoutedModel
from glider.inference.spec import load
from glider.inference.streaming import Piece

from ..conftest import byte_tokenizer, tiny_llama

PROMPTS = ["sort 3 1 2", "What is the capital of France, and what of Italy?", "why?"]


@pytest.fixture
def llama(llama_directory: Path, make_pool) -> RoutedModel:
    return load(str(llama_directory), make_pool(llama_directory).path)


def test_a_generation_config_is_honoured(llama: RoutedModel) -> None:
    config = GenerationConfig(do_sample=True, temperature=5.0, max_new_tokens=9)
    torch.manual_seed(0)
    [sampled] = llama.generate(PROMPTS[:1], generation_config=config)
    torch.manual_seed(0)
    [as_keywords] = llama.generate(PROMPTS[:1], do_sample=True, temperature=5.0, max_new_tokens=9)
    [greedy] = llama.generate(PROMPTS[:1], max_new_tokens=9)
    assert sampled == as_keywords and sampled.token_ids != greedy.token_ids
    assert llama.generate(PROMPTS[:1], generation_config=GenerationConfig(max_new_tokens=9)) == [greedy]
    assert llama.generate(PROMPTS[:1], generation_config=config, do_sample=False) == [greedy]
    assert llama.generate_batch(PROMPTS[:1], generation_config=GenerationConfig(max_new_tokens=9)) == [greedy]
    streamed = "".join(llama.stream(PROMPTS[0], generation_config=GenerationConfig(max_new_tokens=9)))
    assert streamed.strip() == greedy.text


@pytest.mark.parametrize("answer", ["generate", "generate_batch"])
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"generation_config": GenerationConfig(num_return_sequences=2, num_beams=2)}, "num_return_sequences"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"generation_config": GenerationConfig(return_dict_in_generate=True)}, "return_dict_in_generate"),
        ({"output_scores": True}, "output_scores"),
        ({"max_length": 30}, "max_length"),
        ({"generation_config": GenerationConfig(max_length=30)}, "max_length"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "2.5"),
        ({"generation_config": {"do_sample": True}}, "dict"),
        ({"temperature": float("nan"), "do_sample": True}, "temperature"),
        ({"temperature": 0.0, "do_sample": True}, "temperature"),
        ({"top_p": -1.0, "do_sample": True}, "top_p"),
        ({"no_such_setting": 1}, "no_such_setting"),
        ({"input_ids": torch.ones(1, 2)}, "input_ids"),
        ({"attention_mask": torch.ones(3, 5)}, "attention_mask"),
        ({"labels": torch.ones(1, 2)}, "labels"),
        ({"position_ids": torch.arange(4)[None]}, "position_ids"),
        ({"past_key_values": DynamicCache()}, "past_key_values"),
        ({"cache": DynamicCache()}, "cache"),
        ({"synced_gpus": True}, "synced_gpus"),
        ({"token_healing": True}, "token_healing"),
        ({"stop_strings": [1]}, "stop_strings"),
        ({"stop_strings": ["x", ""]}, "stop_strings"),
        ({"penalty_alpha": [1]}, "penalty_alpha"),
        ({"eos_token_id": 1 << 70}, "settings"),
        ({"logits_processor": [None]}, "logits_processor"),
        ({"stopping_criteria": [1]}, "stopping_criteria"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive_search"),
        ({"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5}, "group_beam_search"),
        ({"custom_generate": "someone/code"}, "custom_generate"),
        ({"prompt_lookup_num_tokens": 3}, "assisted"),
        ({"streamer": TextStreamer(None)}, "streamer|TextStreamer"),
        ({"max_new_tokens": 10**7}, "10000000"),
    ],
)
def test_settings_that_give_no_text_or_several_are_refused(
    llama: RoutedModel, answer: str, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(QueryError, match=named):
        getattr(llama, answer)(PROMPTS, **settings)


def test_what_transformers_does_wrongly_beside_an_encoder_is_refused(t5_directory: Path, make_pool) -> None:
    """Guidance gives the encoder the answer's tokens; pieces cut the encoder's mask, so that padding is read."""
    model = load(str(t5_directory), make_pool(t5_directory, 2).path, router="phatgoose")
    with pytest.raises(QueryError, match="guidance_scale"):
        model.generate(PROMPTS[:1], max_new_tokens=3, guidance_scale=1.5)
    with pytest.raises(QueryError, match="prefill_chunk_size"):
        model.generate(PROMPTS, max_new_tokens=3, prefill_chunk_size=4)
    wanted = model.score_many(PROMPTS, [["yes"]] * 3)[0], [a.token_ids for a in model.generate_batch(PROMPTS)]
    model.model.generation_config.prefill_chunk_size = 4
    assert (model.score_many(PROMPTS, [["yes"]] * 3)[0], [a.token_ids for a in model.generate_batch(PROMPTS)]) == wanted


def test_packed_prompts_keep_a_cache(llama: RoutedModel) -> None:
    with pytest.raises(QueryError, match="use_cache=False"):
        llama.generate_batch(PROMPTS, max_new_tokens=3, use_cache=False)


def test_one_prompt_may_be_answered_by_assisted_generation(llama: RoutedModel) -> None:
    [wanted] = llama.generate(PROMPTS[:1], max_new_tokens=6)
    assert llama.generate(PROMPTS[:1], max_new_tokens=6, prompt_lookup_num_tokens=3)[0].token_ids == wanted.token_ids


def test_a_text_of_megabytes_is_not_tokenized_to_its_end(llama: RoutedModel) -> None:
    """It took gigabytes, and half a minute."""
    text, end = "xy " * 4_000_000, "Which words are there?"
    began = time.perf_counter()
    with pytest.raises(QueryError, match="prompt of at most"):
        llama.generate([text], max_new_tokens=4)
    with pytest.raises(QueryError, match="choices of at most"):
        llama.score("What?", [text, "b"])
    (short, long) = (
        llama.generate([f"{'xy ' * count}{end}"], max_new_tokens=4, truncate=True)[0] for count in (2000, 4_000_000)
    )
    assert short.text == long.text
    assert time.perf_counter() - began < 4


def test_stop_strings_of_the_bases_own_settings_are_honoured(llama: RoutedModel) -> None:
    [whole] = llama.generate(PROMPTS[:1], max_new_tokens=12)
    stop = whole.text[len(whole.text) // 2]
    llama.model.generation_config.stop_strings = [stop]
    wanted = whole.text.partition(stop)[0].strip()
    for answer in (llama.generate, llama.generate_batch):
        assert answer(PROMPTS[:1], max_new_tokens=12)[0].text == wanted


def test_padding_is_tried_as_far_as_the_answers_may_go(llama: RoutedModel) -> None:
    widths: list[int] = []
    embedding = llama.model.get_input_embeddings()
    with embedding.register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[1])):
        for answer in (llama.generate, llama.generate_batch):
            answer(["a", "ab"], max_new_tokens=150)
    assert max(widths) == 256


def test_the_bases_own_settings_do_not_give_several_answers(llama: RoutedModel) -> None:
    wanted = [answer.token_ids for answer in llama.generate(PROMPTS, max_new_tokens=5)]
    own = llama.model.generation_config
    own.num_return_sequences, own.num_beams, own.return_dict_in_generate, own.max_length = 2, 2, True, 7
    for answer in (llama.generate, llama.generate_batch):
        assert [one.token_ids for one in answer(PROMPTS, max_new_tokens=5, num_beams=1)] == wanted


class _After(StoppingCriteria):
    """Ends a row once it has so many tokens more than at first."""

    def __init__(self, counts: list[int]):
        self.counts, self.begin = counts, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        self.begin = self.begin or input_ids.shape[1] - 1
        written = input_ids.shape[1] - self.begin
        return torch.tensor([written >= count for count in self.counts])


def test_a_row_that_a_criterion_ends_has_no_padding_in_its_answer(llama: RoutedModel) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 12, "trace": True, "suppress_tokens": [0, 1]}
    together = llama.generate(PROMPTS[:2], stopping_criteria=[_After([3, 100])], **settings)
    [alone] = llama.generate(PROMPTS[:1], stopping_criteria=[_After([3])], **settings)
    assert [len(answer.token_ids) for answer in together] == [3, 12]
    assert [answer.finish_reason for answer in together] == ["stop", "length"]
    assert (together[0].text, together[0].token_ids) == (alone.text, alone.token_ids)
    assert together[0].usage == pytest.approx(alone.usage, abs=1e-3)
    alike = llama.generate(PROMPTS[:1] * 2, stopping_criteria=[_After([3, 100])], **settings)
    assert [len(answer.token_ids) for answer in alike] == [3, 12]


@pytest.mark.parametrize(
    "name",
    ["llama", "mpt", "gpt_neo", "llama4", "jamba", "lfm2", "mamba", "deepseek_v2", "gpt_bigcode", "diffllama"],
)
def test_a_batch_answers_as_its_prompts_alone(routed: Callable[[str], RoutedModel], name: str) -> None:
    model = routed(name)
    alone = [model.generate([prompt], max_new_tokens=6)[0].token_ids for prompt in PROMPTS]
    assert [answer.token_ids for answer in model.generate(PROMPTS, max_new_tokens=6)] == alone
    assert [answer.token_ids for answer in model.generate_batch(PROMPTS, max_new_tokens=6)] == alone


def test_a_model_that_minds_padding_runs_prompts_of_one_length_together(llama: RoutedModel, monkeypatch) -> None:
    answers = llama.generate([*PROMPTS, PROMPTS[0]], max_new_tokens=4)
    wanted = [answer.token_ids for answer in answers]
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr("glider.inference.generation.Sharing.allows", lambda *_: False)
    hook = llama.model.get_input_embeddings().register_forward_hook(lambda _, told, __: shapes.append(told[0].shape))
    pieces: list[Piece] = []
    apart = llama.generate([*PROMPTS, PROMPTS[0]], max_new_tokens=4, on_piece=pieces.append)
    assert [answer.token_ids for answer in apart] == wanted
    hook.remove()
    assert sorted(shape[0] for shape in shapes if shape[1] > 1) == [1, 1, 2]
    for row, answer in enumerate(answers):
        assert "".join(piece.text for piece in pieces if piece.row == row).strip() == answer.text
    with pytest.raises(QueryError, match="one length"):
        llama.generate(PROMPTS, trace=True)
    assert llama.generate(PROMPTS[:1], trace=True, max_new_tokens=1)[0].usage


def _without_padding(kind: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(chat=False)
    if kind == "outside":  # a token that the embedding has no row for, as after add_special_tokens without a resize
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        assert tokenizer.pad_token_id == 259
    else:
        tokenizer.pad_token = tokenizer.eos_token = None
    return tokenizer


@pytest.mark.parametrize("kind", ["outside", "none"])
def test_padding_that_cannot_be_embedded_is_masked_anyway(tmp_path: Path, make_pool, kind: str) -> None:
    base: LlamaForCausalLM = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    _without_padding(kind).save_pretrained(tmp_path / "base")
    model = load(str(tmp_path / "base"), make_pool(tmp_path / "base").path, router="phatgoose")
    alone = [model.generate([prompt], max_new_tokens=3)[0] for prompt in PROMPTS]
    for answer in (model.generate, model.generate_batch):
        assert [one.token_ids for one in answer(PROMPTS, max_new_tokens=3)] == [one.token_ids for one in alone]
    together, _ = model.score_many(PROMPTS, [["y", "no"]] * 3)
    for prompt, row in zip(PROMPTS, together, strict=True):
        single = model.score(prompt, ["y", "no"])
        assert [one.log_likelihood for one in row] == pytest.approx([one.log_likelihood for one in single], abs=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_logits_that_are_not_finite_are_an_error(llama: RoutedModel, value: float) -> None:
    with torch.no_grad():
        llama.model.lm_head.weight[:] = value
    for settings in ({}, {"do_sample": True}, {"num_beams": 2}):
        with pytest.raises(QueryError, match="finite logits"):
            llama.generate(PROMPTS, max_new_tokens=3, **settings)
    with pytest.raises(QueryError, match="finite logits"):
        llama.generate_batch(PROMPTS, max_new_tokens=3)
    with pytest.raises(QueryError, match="finite logits"):
        "".join(llama.stream(PROMPTS[0], max_new_tokens=3))


def test_an_end_that_is_forced_at_the_longest_length_is_forced_everywhere(llama: RoutedModel) -> None:
    """BART's configuration asks for it; only the padded way knew where the longest length is."""
    llama.model.generation_config.forced_eos_token_id = 1
    free = llama.generate(["What?"], max_new_tokens=4, forced_eos_token_id=None, eos_token_id=250)
    (alone,) = llama.generate(["What?"], max_new_tokens=4, eos_token_id=[1, 250])
    assert alone.token_ids[-1] == 1
    assert free[0].token_ids[:3] == alone.token_ids[:3]
    (packed,) = llama.generate_batch(["What?"], max_new_tokens=4, eos_token_id=[1, 250])
    assert packed.token_ids == alone.token_ids
    assert "".join(llama.stream("What?", max_new_tokens=4, eos_token_id=[1, 250])).strip() == alone.text
