"""Log-probabilities and counts of the cache in `/v1/responses`, by the official client and its types."""

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from .conftest import Served
from .test_response_tools import RAINING
from .test_tools import caller_server

LOGPROBS: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
TEXT = "the e0 e03 and e07"
ASK: dict[str, Any] = {"model": "tiny", "input": TEXT, "temperature": 0, "max_output_tokens": 12}


@pytest.fixture(scope="module")
def caller(embedder_identity: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with caller_server(embedder_identity, tmp_path_factory.mktemp("logprobs")) as one:
        yield one.client()


def test_they_are_those_of_the_chat(client: openai.OpenAI) -> None:
    answer = client.responses.create(**ASK, **LOGPROBS)
    turns: list[Any] = [{"role": "user", "content": TEXT}]
    chat = client.chat.completions.create(
        model="tiny", messages=turns, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2
    )
    (item,) = answer.output
    logprobs = item.content[0].logprobs  # pyright: ignore
    assert answer.top_logprobs == 2
    assert [len(one.top_logprobs) for one in logprobs] == [2] * 12
    assert [one.model_dump() for one in logprobs] == [
        one.model_dump()
        for one in chat.choices[0].logprobs.content  # pyright: ignore
    ]
    assert b"".join(bytes(one.bytes) for one in logprobs).decode(errors="replace") == answer.output_text


def test_the_official_types_take_every_reply(server: Served) -> None:
    """Validated, which the client itself does not do."""
    replies = [httpx.post(f"{server.url}/v1/responses", json=body, timeout=60) for body in (ASK, ASK | LOGPROBS)]
    for reply in replies:
        Response.model_validate(reply.json())
    events: Any = TypeAdapter(ResponseStreamEvent)
    with httpx.stream("POST", f"{server.url}/v1/responses", json=ASK | LOGPROBS | {"stream": True}) as stream:
        data = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
    assert len([events.validate_json(one) for one in data]) > 12


def test_without_them_none_are_told(client: openai.OpenAI) -> None:
    answer = client.responses.create(**ASK)
    assert (answer.top_logprobs, answer.output[0].content[0].logprobs) == (0, [])  # pyright: ignore
    alone = client.responses.create(**ASK, include=["message.output_text.logprobs"])
    assert [one.top_logprobs for one in alone.output[0].content[0].logprobs] == [[]] * 12  # pyright: ignore


def test_a_stream_tells_each_with_its_text(client: openai.OpenAI) -> None:
    whole: Any = client.responses.create(**ASK, **LOGPROBS)
    with client.responses.create(**ASK, **LOGPROBS, stream=True) as stream:
        events: list[Any] = list(stream)
    deltas = [one for one in events if event_kind(one) == "output_text.delta"]
    (done,) = [one for one in events if event_kind(one) == "output_text.done"]
    (part,) = [one for one in events if event_kind(one) == "content_part.done"]
    told = [one for delta in deltas for one in delta.logprobs]
    assert all(delta.logprobs for delta in deltas)
    assert [one.model_dump() for one in told] == [one.model_dump() for one in done.logprobs]
    assert [(one.token, one.logprob) for one in told] == [(one.token, one.logprob) for one in part.part.logprobs]
    assert part.part == events[-1].response.output[0].content[0] == whole.output[0].content[0]
    (added,) = [one for one in events if event_kind(one) == "content_part.added"]
    assert added.part.logprobs == []


def event_kind(event: Any) -> str:
    return event.type.removeprefix("response.")


def test_a_call_has_none_and_goes_back(caller: openai.OpenAI) -> None:
    """The tokens of a call are no text; an answer with its log-probabilities can be sent back as it came."""
    asking: dict[str, Any] = {"model": "caller", "temperature": 0, "tools": [RAINING]}
    answer: Any = caller.responses.create(input="Rain?", max_output_tokens=160, **asking, **LOGPROBS)
    text, call = answer.output
    assert call.type == "function_call"
    said = b"".join(bytes(one.bytes) for one in text.content[0].logprobs).decode()
    assert said.rstrip() == answer.output_text == "Let me see."
    items: list[Any] = [{"role": "user", "content": "Rain?"}, *(item.model_dump() for item in answer.output)]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "none"})
    assert caller.responses.create(input=items, max_output_tokens=2, **asking).status == "incomplete"


def test_usage_tells_what_came_from_the_cache(server: Served, client: openai.OpenAI) -> None:
    """One expert's conversation is taken up where it was, a routed one of another question is not."""
    turns: list[Any] = [{"role": "user", "content": "Tell me of e1, of e11 and of all the others, once more. " * 2}]
    settings: dict[str, Any] = {"model": "e1", "temperature": 0}
    first = client.chat.completions.create(messages=turns, max_tokens=2, **settings)
    again = client.chat.completions.create(messages=turns, max_tokens=2, **settings)
    shared = (first.usage.prompt_tokens - 1) // 32 * 32  # pyright: ignore
    assert first.usage.prompt_tokens_details.cached_tokens == 0  # pyright: ignore
    assert again.usage.prompt_tokens_details.cached_tokens == shared > 0  # pyright: ignore
    several = client.chat.completions.create(messages=turns, max_tokens=2, n=3, **settings)
    assert several.usage.prompt_tokens_details.cached_tokens == shared  # pyright: ignore
    response = client.responses.create(input=turns, max_output_tokens=2, **settings)
    details = response.usage.input_tokens_details  # pyright: ignore
    pages = first.usage.prompt_tokens // 32 * 32  # pyright: ignore
    assert (details.cached_tokens, details.cache_write_tokens) == (shared, pages - shared)
    streamed = list(
        client.chat.completions.create(
            messages=turns, max_tokens=2, stream=True, stream_options={"include_usage": True}, **settings
        )
    )
    assert streamed[-1].usage == again.usage


def test_completions_tell_it_too(client: openai.OpenAI) -> None:
    prompt = "Write of e2, of e22, and of what else there is. " * 2
    settings: dict[str, Any] = {"model": "e2", "prompt": prompt, "temperature": 0, "max_tokens": 2}
    first, again = (client.completions.create(**settings).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens == 0  # pyright: ignore
    assert again.prompt_tokens_details.cached_tokens == (again.prompt_tokens - 1) // 32 * 32  # pyright: ignore
    both = client.completions.create(**{**settings, "prompt": [prompt, "And of something else? " * 4]}).usage
    assert both.prompt_tokens_details.cached_tokens == again.prompt_tokens_details.cached_tokens  # pyright: ignore
    streamed = list(client.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert streamed[-1].usage == again
