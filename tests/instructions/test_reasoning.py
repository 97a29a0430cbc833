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
    "nested": f"<think>a <think>{THOUGHT}</think> b</think>{SENTENCE}",
    "with attributes": f"<think budget='9'>{THOUGHT}</think>{SENTENCE}",
    "a name of its own": f"<longcat_think>{THOUGHT}</longcat_think>{SENTENCE}",
    "analysis": f"<analysis>{THOUGHT}</analysis><answer>{SENTENCE}</answer>",
    "cohere": f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>{SENTENCE}<|END_RESPONSE|>",
    "apertus": f"<|inner_prefix|>{THOUGHT}<|inner_suffix|>{SENTENCE}",
    "begin of thought": f"<|begin_of_thought|>{THOUGHT}<|end_of_thought|>{SENTENCE}",
    "granite": f"Here is my thought process:\n{THOUGHT}\nHere is my response:\n{SENTENCE}",
    "bars": f"<|thinking|>{THOUGHT}<|/thinking|>{SENTENCE}",
    "bars that begin": f"<|think_start|>{THOUGHT}<|think_end|>{SENTENCE}",
    "bars of reasoning": f"<|begin_of_reasoning|>{THOUGHT}<|end_of_reasoning|>{SENTENCE}",
    "wide bars": "<\uff5cbegin\u2581of\u2581thinking\uff5c>"
    + THOUGHT
    + "<\uff5cend\u2581of\u2581thinking\uff5c>"
    + SENTENCE,
    "a wide mark of the end": f"{SENTENCE}<\uff5cend\u2581of\u2581sentence\uff5c>",
    "a mark of the turn's end": f"{SENTENCE}[|endofturn|]",
    "solar": f"<|begin|>assistant<|think|>{THOUGHT}<|end|><|begin|>assistant<|content|>{SENTENCE}<|end|>",
    "more brackets": f"[REASONING]{THOUGHT}[/REASONING] {SENTENCE}",
    "spaces in the tags": f"<think >{THOUGHT}</think >{SENTENCE}",
    "an invisible letter in the tags": f"<\u200bthink>{THOUGHT}</\u200bthink>{SENTENCE}",
    "escaped tags": f"&lt;think&gt;{THOUGHT}&lt;/think&gt;{SENTENCE}",
    "rationale": f"<rationale>{THOUGHT}</rationale>{SENTENCE}",
    "a front end's": f"<details type='reasoning'>\n<summary>So</summary>\n> {THOUGHT}\n</details>\n{SENTENCE}",
    "a comment": f"<!-- {THOUGHT} -->{SENTENCE}",
    "a call": '<tool_call>{"name": "x"}</tool_call>' + SENTENCE,
    "fence": f"```thinking\n{THOUGHT}\n```\n{SENTENCE}",
    "headings": f"### Reasoning\n{THOUGHT}\n\n### Answer\n{SENTENCE}",
    "headings in bold": f"**Thinking:** {THOUGHT}\n\n**Final answer:** {SENTENCE}",
    "react": f"Thought: {THOUGHT}\nFinal Answer: {SENTENCE}",
    "granite in bold": f"**Here is my thought process:** {THOUGHT}\n**Here is my response:** {SENTENCE}",
    "harmony's last name": f"final{SENTENCE}",
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
        f"<|START_THINKING|>{THOUGHT}",
        f"<think budget='9'>{THOUGHT}",
        f"<think>{THOUGHT}</think><think>{THOUGHT}",
        f"Here is my thought process: {THOUGHT}",
        f"<|thinking|>{THOUGHT}",
        f"<|begin|>assistant<|think|>{THOUGHT}",
        f"analysis{THOUGHT}",
        f"### Reasoning\n{THOUGHT}",
        f"```thinking\n{THOUGHT}",
        f"<details>{THOUGHT}",
    ],
)
def test_a_thought_without_an_end_is_refused(reply: str):
    with pytest.raises(Nonsense, match="a thought without an end"):
        clean(reply)


def test_words_of_thought_within_a_sentence_stay():
    for text in (
        "Follow the reasoning of an analysis, then give the assistant's final answer.",
        "Think about the plan of a text, and name its analysis: which reasoning is sound.",
        "Analysis of a review decides whether its thoughts are kind.",
    ):
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
    assert described(endpoint, [SENTENCE[:10], {"type": "image_url"}, 3, SENTENCE[10:]]).text == SENTENCE
    assert described(endpoint, [{"type": "output_text", "text": {"value": SENTENCE}}]).text == SENTENCE


def test_a_reply_that_was_cut_is_a_fault_unless_it_has_a_whole_sentence(endpoint):
    one = described(endpoint, SENTENCE[:-10], "length")
    assert one.text is None and "max_tokens" in (one.fault or "")
    assert described(endpoint, f"{SENTENCE} And then it goes on to", "length").text == SENTENCE
    for reason, named in (
        ("content_filter", "filter"),
        ("SAFETY", "filter"),
        ("error", "broke"),
        ("MAX_TOKENS", "cut"),
    ):
        one = described(endpoint, SENTENCE[:-1], reason)
        assert one.text is None and named in (one.fault or "")


@pytest.mark.parametrize(("code", "requests"), [(429, 3), ("503", 3), (400, 1), ("invalid", 1)])
def test_an_error_within_a_success_is_an_error(endpoint, code: Any, requests: int):
    endpoint.answer = lambda _: {"error": {"message": "limit of free requests", "code": code}}
    writer = load_describer("openai:tiny-chat", base_url=endpoint.base_url, backoff=0.001)
    (one,) = describe_tasks(writer, [TASK])
    assert one.text is None and "limit of free requests" in (one.fault or "")
    assert len(endpoint.requests) == requests


@pytest.mark.parametrize(
    ("body", "requests"),
    [
        ({"object": "error", "message": "a limit", "code": 429}, 3),
        ({"error": {"type": "overloaded_error", "message": "a limit"}}, 3),
        ({"error": {"code": "rate_limit_exceeded", "message": "a limit"}, "choices": []}, 3),
        ({"error": {"status": "UNAVAILABLE", "message": "a limit"}}, 3),
        ({"errors": [{"message": "a limit", "code": 503}]}, 3),
        ({"errors": ["a limit"]}, 1),
        ({"error": "a limit"}, 1),
        ({"detail": "a limit"}, 1),
        ({"code": 500, "msg": "a limit"}, 3),
        ({"choices": [{"error": {"code": 502, "message": "a limit"}, "message": {"content": SENTENCE}}]}, 3),
    ],
)
def test_an_error_within_a_success_has_many_forms(endpoint, body: Any, requests: int):
    endpoint.answer = lambda _: body
    writer = load_describer("openai:tiny-chat", base_url=endpoint.base_url, backoff=0.001)
    (one,) = describe_tasks(writer, [TASK])
    assert one.text is None and "a limit" in (one.fault or "")
    assert len(endpoint.requests) == requests


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": None, "error": None}, {"error": {}, "choices": [3]}])
def test_a_success_without_anything_has_no_message(endpoint, body: Any):
    endpoint.answer = lambda _: body
    writer = load_describer("openai:tiny-chat", base_url=endpoint.base_url, backoff=0.001)
    (one,) = describe_tasks(writer, [TASK])
    assert one.text is None and "no message" in (one.fault or "")


@pytest.mark.parametrize("start", ["Analysis:", "Thinking:\n", "<think>"])
@pytest.mark.parametrize("filling", ["\n", "\n* ", "<think>", "<!--", "\nanswer "])
def test_a_reply_of_marks_alone_is_refused_at_once(start: str, filling: str):
    with pytest.raises(Nonsense):  # in minutes, where a mark is looked for again from each other one
        clean(start + filling * (18_000 // len(filling)))


def test_a_thought_ends_with_the_first_end_and_each_has_its_own():
    assert clean(f"<think>{THOUGHT}<think>{THOUGHT}</think>{SENTENCE}<think>{THOUGHT}</think>") == SENTENCE
