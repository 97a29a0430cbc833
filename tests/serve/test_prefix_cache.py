"""Turns of a conversation at a server: what is taken from the cache, by its own count."""

import re
from typing import Any

import httpx2 as httpx
import pytest

from glider.inference.model import RoutedModel

from .conftest import Served

PAGE = 32
ASKED = "Tell me about the e0 e03 and e07, and about the e2 e21 too."


def prefix_cache(served: Served) -> tuple[int, int]:
    text = httpx.get(f"{served.url}/metrics").text
    return tuple(  # pyright: ignore[reportReturnType]
        int(float(re.findall(rf"^vllm:prefix_cache_{name}_total (\S+)", text, re.MULTILINE)[0]))
        for name in ("queries", "hits")
    )


def say(served: Served, model: str, turns: list[Any], **steering: Any) -> tuple[Any, int, int]:
    """The answer, the prompt's tokens and those of them that the cache had."""
    before = prefix_cache(served)
    settings = {"model": model, "messages": turns, "temperature": 0, "max_tokens": 16}
    answer: Any = served.client().chat.completions.create(**settings, extra_body={"glider": steering})
    after = prefix_cache(served)
    assert after[0] - before[0] == answer.usage.prompt_tokens
    return answer.choices[0].message.content, answer.usage.prompt_tokens, after[1] - before[1]


def conversation(served: Served, model: str, **steering: Any) -> tuple[int, int, list[Any], str]:
    """Of two turns: tokens of the first prompt, those that the second took from the cache, its turns, its answer."""
    turns = [{"role": "system", "content": f"You are {model}."}, {"role": "user", "content": ASKED}]
    content, first, _ = say(served, model, turns, **steering)
    turns += [{"role": "assistant", "content": content}, {"role": "user", "content": "And what about the e3 e31?"}]
    answer, _, shared = say(served, model, turns, **steering)
    return first, shared, turns, answer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "steering"), [("tiny-llama", {}), ("e2", {}), ("tiny", {"experts": {"e1": 1.0}}), ("tiny:phatgoose", {})]
)
def test_a_turn_is_taken_up_where_its_experts_are_the_same(server: Served, model: str, steering: Any) -> None:
    first, shared, _, _ = conversation(server, model, **steering)
    assert shared >= first // PAGE * PAGE - PAGE > 0  # the template's last words may differ


@pytest.mark.slow
def test_a_turn_of_another_question_is_computed_anew(server: Served, model: RoutedModel) -> None:
    """Its scores are others, and with them every key and value."""
    _, shared, turns, answer = conversation(server, "tiny")
    (inside,) = model.generate([turns], max_new_tokens=16)
    assert (shared, answer.strip()) == (0, inside.text)
