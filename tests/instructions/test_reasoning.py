"""Descriptions by models that think aloud, are cut, or answer in parts."""

from typing import Any

import pytest

from glider.instructions.cleaning import Nonsense, clean
from glider.instructions.describers import Task, describe_tasks, load_describer
from glider.routing.condition import Described

SENTENCE = "Decide whether a review is friendly or rude, which needs a sense of tone."
THOUGHT = "The user shows three rows. I should think about what they have in common first."
TASK = Task((("a fine film", "positive"), ("a dull one", "negative"), ("I slept", "negative")))
MARKED = {
    "harmony": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{SENTENCE}",
    "harmony with an end": f"<|channel|>final <|constrain|>text<|message|>{SENTENCE}<|return|>",
    "harmony without marks": f"analysis{THOUGHT}assistantfinal{SENTENCE}",
    "think": f"<think>{THOUGHT}</think>{SENTENCE}",
    "thinking": f"<thinking>{THOUGHT}</thinking>\n{SENTENCE}",
    "thought": f"<thought>\n{THOUGHT}\n</thought>\n{SENTENCE}",
    "reasoning": f"<reasoning>{THOUGHT}</reasoning>{SENTENCE}",
    "seed": f"<seed:think>{THOUGHT}</seed:think>{SENTENCE}",
    "triangles": f"\u25c1think\u25b7{THOUGHT}\u25c1/think\u25b7{SENTENCE}",
    "brackets": f"[THINK]{THOUGHT}[/THINK]{SENTENCE}",
    "gemma": f"<|channel>thought\n{THOUGHT}<channel|>{SENTENCE}",
    "opened within the prompt": f"{THOUGHT}</thinking>\n\n{SENTENCE}",
}


@pytest.mark.parametrize("kind", MARKED)
def test_what_a_model_thinks_is_no_description(kind: str):
    assert clean(MARKED[kind]) == SENTENCE


@pytest.mark.parametrize(
    "reply",
    [
        f"<thinking>{THOUGHT}",
        f"<seed:think>{THOUGHT}",
        f"[THINK]{THOUGHT}",
        f"\u25c1think\u25b7{THOUGHT}",
        f"<|channel|>analysis<|message|>{THOUGHT}",
        f"<|channel>thought\n{THOUGHT}",
    ],
)
def test_a_thought_without_an_end_is_refused(reply: str):
    with pytest.raises(Nonsense, match="a thought without an end"):
        clean(reply)


def test_words_of_thought_within_a_sentence_stay():
    text = "Follow the reasoning of an analysis, then give the assistant's final answer."
    assert clean(text) == text


def described(endpoint: Any, content: Any, finish: str = "stop", **settings: Any) -> Described:
    message = {"role": "assistant", "content": content}
    endpoint.answer = lambda _: {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    writer = load_describer("openai:tiny-chat", base_url=endpoint.base_url, backoff=0.001, **settings)
    (one,) = describe_tasks(writer, [TASK])
    return one


def test_a_reply_in_parts_is_its_text(endpoint):
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, {"type": "text", "text": SENTENCE}]
    assert described(endpoint, parts).text == SENTENCE
    assert "no message" in (described(endpoint, parts[:1]).fault or "")


def test_a_reply_that_was_cut_is_a_fault_unless_it_has_a_whole_sentence(endpoint):
    one = described(endpoint, SENTENCE[:-10], "length")
    assert one.text is None and "max_tokens" in (one.fault or "")
    assert described(endpoint, f"{SENTENCE} And then it goes on to", "length").text == SENTENCE
    one = described(endpoint, SENTENCE, "content_filter")
    assert one.text is None and "filter" in (one.fault or "")


@pytest.mark.parametrize(("code", "requests"), [(429, 3), ("503", 3), (400, 1), ("invalid", 1)])
def test_an_error_within_a_success_is_an_error(endpoint, code: Any, requests: int):
    endpoint.answer = lambda _: {"error": {"message": "limit of free requests", "code": code}}
    writer = load_describer("openai:tiny-chat", base_url=endpoint.base_url, backoff=0.001)
    (one,) = describe_tasks(writer, [TASK])
    assert one.text is None and "limit of free requests" in (one.fault or "")
    assert len(endpoint.requests) == requests
