"""Each prompt gets one answer, with what guided it; what cannot be answered is refused by its number."""

from pathlib import Path

import pytest
import torch

from glider.errors import QueryError
from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import load

from .prompts import PROMPTS

CONTEXT = 512
TEMPLATE_TOKENS = len("<u></u><a>")


def test_each_prompt_gets_one_answer_with_what_guided_it(model: RoutedModel) -> None:
    answers = model.generate(PROMPTS, max_new_tokens=7)
    assert len(answers) == len(PROMPTS)
    for answer in answers:
        assert answer.text == model.tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip()
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] == 1 else "length")
        assert len(answer.token_ids) == 7 or answer.finish_reason == "stop"
        assert list(answer.global_scores) == ["e0", "e1", "e2"] == model.experts
        assert answer.alpha == 3
        assert answer.usage == {}


def test_an_answer_that_ends_by_itself_says_stop(model: RoutedModel) -> None:
    [answer] = model.generate(PROMPTS[:1], max_new_tokens=5, forced_eos_token_id=1)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == 1
    [answer] = model.generate(PROMPTS[:1], max_new_tokens=5, suppress_tokens=[1])
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == 5


def test_a_description_is_embedded_in_place_of_the_text(model: RoutedModel) -> None:
    plain, told = model.generate([PROMPTS[0], Query(PROMPTS[0], description=PROMPTS[1])], max_new_tokens=2)
    [other] = model.generate([PROMPTS[1]], max_new_tokens=2)
    assert told.global_scores == pytest.approx(other.global_scores, abs=1e-5)
    assert told.global_scores != pytest.approx(plain.global_scores, abs=1e-3)


def test_a_router_without_a_global_term_has_no_scores(base_directory: Path, make_pool) -> None:
    model = load(str(base_directory), make_pool(base_directory, 2).path, router="phatgoose")
    [answer] = model.generate(PROMPTS[:1], max_new_tokens=2)
    assert (answer.global_scores, answer.alpha) == ({}, None)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused_by_its_number(model: RoutedModel, text: str) -> None:
    with pytest.raises(QueryError, match="prompt 2"):
        model.generate(["fine", text])
    with pytest.raises(QueryError, match="empty"):
        model.score(text, ["a"])
    with pytest.raises(QueryError, match="empty"):
        model.trace(text)


def test_no_prompt_and_no_choice_are_refused(model: RoutedModel) -> None:
    with pytest.raises(QueryError, match="at least one prompt"):
        model.generate([])
    with pytest.raises(QueryError, match="at least one choice"):
        model.score("a question", [])


def test_several_answers_to_one_prompt_are_refused(model: RoutedModel) -> None:
    with pytest.raises(QueryError, match="one answer"):
        model.generate(PROMPTS, num_return_sequences=2, do_sample=True)


def test_a_prompt_beyond_the_context_says_how_long_it_is(llama: RoutedModel) -> None:
    length = 600 + TEMPLATE_TOKENS
    with pytest.raises(QueryError, match=rf"at most {CONTEXT - 20} tokens .*got {length} tokens \(prompt 2\)"):
        llama.generate(["short", "x" * 600], max_new_tokens=20)


def test_the_longest_prompt_that_fits_is_answered(llama: RoutedModel) -> None:
    fits = "x" * (CONTEXT - 4 - TEMPLATE_TOKENS)
    assert llama.generate([fits], max_new_tokens=4)
    with pytest.raises(QueryError, match=f"at most {CONTEXT - 4}"):
        llama.generate([fits + "x"], max_new_tokens=4)


def test_truncating_keeps_the_end(llama: RoutedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "a" * 300 + "b" * 300
    seen: list[torch.Tensor] = []
    original = llama.model.generate
    monkeypatch.setattr(llama.model, "generate", lambda **k: (seen.append(k["input_ids"]), original(**k))[1])
    llama.generate([prompt], max_new_tokens=12, truncate=True)
    whole = llama.prompt.prompt_ids(llama.tokenizer, prompt)
    assert seen[0][0].tolist() == whole[-(CONTEXT - 12) :]


def test_an_answer_longer_than_the_context_cannot_be_truncated_for(llama: RoutedModel) -> None:
    with pytest.raises(QueryError, match="context of 512"):
        llama.generate(["hi"], max_new_tokens=CONTEXT, truncate=True)


def test_a_prompt_is_cut_for_its_own_choices_alone(llama: RoutedModel) -> None:
    """It was cut for the longest choice of the whole batch, and scored otherwise than alone."""
    border = "abcdefg" * 100
    for prompt in ("a" * (CONTEXT - TEMPLATE_TOKENS - 3), border):
        [alone] = llama.score(prompt, ["ab"], truncate=True)
        [[beside], _] = llama.score_many([prompt, "short"], [["ab"], ["c" * 300]], truncate=True)[0]
        assert beside.log_likelihood == pytest.approx(alone.log_likelihood, abs=1e-4)
    fits = "a" * (CONTEXT - TEMPLATE_TOKENS - 3)
    assert llama.score_many([fits, "short"], [["ab"], ["c" * 300]])[0][0][0].tokens == 3


def test_t5_has_no_limit(t5_directory: Path, make_pool) -> None:
    model = load(str(t5_directory), make_pool(t5_directory, 1).path)
    assert len(model.generate(["x" * 700], max_new_tokens=2)) == 1


def test_an_end_of_the_callers_own_ends_the_answer(make_pool, llama_directory: Path) -> None:
    model = load(str(llama_directory), make_pool(llama_directory).path)
    prompts = ["hello", "a second prompt"]
    free = model.generate(prompts, max_new_tokens=8)
    end = free[0].token_ids[2]
    stopped = model.generate(prompts, max_new_tokens=8, eos_token_id=[end])
    for whole, cut in zip(free, stopped, strict=True):
        wanted = whole.token_ids[: whole.token_ids.index(end) + 1] if end in whole.token_ids else whole.token_ids
        assert cut.token_ids == wanted
        assert cut.finish_reason == ("stop" if end in whole.token_ids else whole.finish_reason)
