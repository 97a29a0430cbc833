"""Chats as prompts, and prompts that are none."""

from pathlib import Path
from typing import Any

import pytest

from glider.errors import QueryError
from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import load

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": [{"type": "text", "text": "And three?"}]},
]


@pytest.fixture
def llama(make_pool: Any, llama_directory: Path) -> RoutedModel:
    return load(str(llama_directory), make_pool(llama_directory, experts=2).path, p=0.1)


@pytest.fixture
def t5(make_pool: Any, t5_directory: Path) -> RoutedModel:
    return load(str(t5_directory), make_pool(t5_directory, experts=2, name="t5-pool").path, router="phatgoose")


def test_a_chat_is_rendered_by_the_bases_template_and_asked_by_what_the_user_says(llama: RoutedModel):
    query = Query.of(CHAT)
    assert query.text == "What is two and two?\nAnd three?"
    (ids,) = llama.encoder.rows([CHAT], False, 4)
    rendered = "<u>Be brief.</u><u>What is two and two?</u><u>Four.</u><u>And three?</u><a>"
    assert llama.tokenizer.decode(ids) == rendered
    plain = Query(query.text)
    assert llama.condition([CHAT]).digest(0) == llama.condition([plain]).digest(0)


def test_a_chat_of_one_turn_is_its_text(llama: RoutedModel, t5: RoutedModel):
    chat = [{"role": "user", "content": "What is two and two?"}]
    for model in (llama, t5):
        (alone,) = model.generate([chat[0]["content"]], max_new_tokens=5)
        (asked,) = model.generate([chat], max_new_tokens=5)
        assert asked == alone
        assert model.score(chat, ["a", "b"]) == model.score(chat[0]["content"], ["a", "b"])
        assert "".join(model.stream(chat, max_new_tokens=5)) == alone.text
        assert model.generate_batch([chat, chat], max_new_tokens=5)[1].text == alone.text


def test_a_base_without_a_template_takes_one_turn(t5: RoutedModel):
    with pytest.raises(QueryError, match="without a chat template; got 4 turns"):
        t5.generate([CHAT], max_new_tokens=2)


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        3,
        b"bytes",
        [],
        {"role": "user", "content": "x"},
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": "x", "tool_calls": []}],
        [{"content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        [{"role": "user", "content": [{"type": "image", "image": "x"}]}],
        ["text", {"role": "user", "content": "x"}],
        "half \ud83d of one",
        [{"role": "user", "content": "half \ud83d"}],
    ],
    ids=repr,
)
def test_what_is_no_prompt_is_refused(llama: RoutedModel, prompt: Any):
    for ask in (llama.generate, llama.generate_batch, llama.condition):
        with pytest.raises(QueryError):
            ask([prompt])
    with pytest.raises(QueryError):
        llama.score(prompt, ["a"])


@pytest.mark.parametrize("choice", [None, 3, "half \udc00"])
def test_what_is_no_choice_is_refused(llama: RoutedModel, choice: Any):
    with pytest.raises(QueryError, match="choice"):
        llama.score("What?", ["a", choice])


def test_one_chat_is_not_a_list_of_prompts(llama: RoutedModel):
    with pytest.raises(QueryError, match=r"Write \[prompt\]"):
        llama.generate(CHAT)
