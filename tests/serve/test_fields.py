"""Fields that clients of OpenAI's API send beside what they ask, and what each comes to."""

import json
from typing import Any

import httpx2 as httpx
import openai
import pytest

from glider.instructions.embedders import load_embedder

from .conftest import Served

TURN = {"role": "user", "content": "The e1 of e2 and"}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [TURN], "max_tokens": 3, "temperature": 0}
RESPONSE: dict[str, Any] = {"model": "tiny", "input": TURN["content"], "max_output_tokens": 3, "temperature": 0}
EMBEDDING: dict[str, Any] = {"model": "tiny", "input": "hello"}
PLACES = {"chat/completions": CHAT, "responses": RESPONSE, "embeddings": EMBEDDING}
LABELS = {"k" * 64: "v" * 512, **{f"k{number}": "" for number in range(15)}}


def post(served: Served, path: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/{path}", json={**PLACES[path], **fields}, timeout=120)


def content(answer: httpx.Response) -> Any:
    """What is the same each time that a greedy answer is asked for."""
    reply = answer.json()
    output = reply.get("choices") or [item["content"] for item in reply["output"]]
    return output, reply["usage"]["total_tokens"], reply["glider"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", {"metadata": LABELS}),
        ("chat/completions", {"safety_identifier": "u" * 64, "prompt_cache_key": "mine"}),
        ("chat/completions", {"tools": []}),
        ("chat/completions", {"tools": [], "tool_choice": "none"}),
        ("chat/completions", {"max_tokens": 3, "max_completion_tokens": 3}),
        ("chat/completions", {"stream_options": None, "store": False, "service_tier": "auto", "modalities": ["text"]}),
        ("responses", {"metadata": LABELS}),
        ("responses", {"safety_identifier": "u" * 64, "prompt_cache_key": "mine"}),
        ("responses", {"tools": []}),
        ("responses", {"reasoning": {}}),
        ("responses", {"reasoning": {"effort": None, "summary": None}}),
        ("responses", {"reasoning": None}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_field_that_asks_nothing_changes_nothing(server: Served, path: str, fields: dict[str, Any]) -> None:
    answer = post(server, path, **fields)
    assert answer.status_code == 200, answer.text
    assert content(answer) == content(post(server, path))


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat/completions", {"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 65),
        ("chat/completions", {"metadata": {"k": "v" * 513}}, "metadata.k"),
        ("chat/completions", {"metadata": {"k": 1}}, "metadata.k"),
        ("chat/completions", {"metadata": {**LABELS, "more": ""}}, "metadata"),
        ("chat/completions", {"metadata": []}, "metadata"),
        ("chat/completions", {"safety_identifier": "u" * 65}, "safety_identifier"),
        ("chat/completions", {"prompt_cache_key": 5}, "prompt_cache_key"),
        ("chat/completions", {"tools": [], "tool_choice": "required"}, "tool_choice"),
        ("chat/completions", {"tools": [], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ("chat/completions", {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ("chat/completions", {"messages": [{**TURN, "name": "ann"}]}, "messages.0.name"),
        ("chat/completions", {"reasoning": {}}, "reasoning"),
        ("responses", {"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 65),
        ("responses", {"metadata": {"k": "v" * 513}}, "metadata.k"),
        ("responses", {"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ("responses", {"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ("embeddings", {"dimensions": 256}, "dimensions"),
        ("embeddings", {"dimensions": 0}, "dimensions"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_one_that_asks_what_is_not_done_is_named(server: Served, path: str, fields: dict[str, Any], param: str) -> None:
    answer = post(server, path, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_too_many_notes_are_told_in_words_of_json(server: Served) -> None:
    """It was a `Dictionary`."""
    answer = post(server, "chat/completions", metadata={**LABELS, "more": ""})
    assert answer.json()["error"]["message"].startswith("metadata: Object should have at most 16 items")


def test_they_come_back_where_openai_tells_them(server: Served) -> None:
    sent = {"metadata": {"a": "b"}, "safety_identifier": "ann", "prompt_cache_key": "mine"}
    response = post(server, "responses", **sent).json()
    assert {name: response[name] for name in sent} == sent
    response = post(server, "responses").json()
    assert {name: response[name] for name in sent} == {**dict.fromkeys(sent), "metadata": {}}
    assert not set(sent) & set(post(server, "chat/completions", **sent).json())


def test_a_safety_identifier_is_in_the_log(server: Served) -> None:
    answer = post(server, "chat/completions", safety_identifier="ann\x1b[2J", user="bob")
    line = next(
        json.loads(line[line.index("{") :])
        for line in server.log.read_text("utf8").splitlines()
        if answer.headers["x-request-id"] in line
    )
    assert (line["safety_identifier"], line["user"]) == ("ann", "bob")


def test_a_stream_that_is_not_obfuscated_is_what_is_sent(client: openai.OpenAI) -> None:
    def ask(obfuscated: bool) -> Any:
        options = {"include_usage": True, "include_obfuscation": obfuscated}
        return list(client.chat.completions.create(**CHAT, stream=True, stream_options=options))

    assert ask(False)[-1].usage.completion_tokens == 3
    with pytest.raises(openai.BadRequestError) as caught:
        ask(True)
    assert caught.value.param == "stream_options.include_obfuscation"


def test_dimensions_are_the_embedders_own(client: openai.OpenAI) -> None:
    size = load_embedder().identity.dimension
    plain = client.embeddings.create(**EMBEDDING).data[0].embedding
    assert client.embeddings.create(**EMBEDDING, dimensions=size).data[0].embedding == plain
    assert len(plain) == size
    with pytest.raises(openai.BadRequestError, match=f"{size} dimensions"):
        client.embeddings.create(**EMBEDDING, dimensions=size + 1)


def test_no_tools_are_tokenised_as_none(server: Served) -> None:
    body = {"messages": [TURN]}
    plain, empty = (
        httpx.post(f"{server.url}/tokenize", json=one, timeout=120).json() for one in (body, {**body, "tools": []})
    )
    assert empty == plain
