"""`/v1/responses` by the official client, beside the chat API."""

import json
import os
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from .conftest import Serve
from .test_limits import BREAKING

TEXT = "the e0 e03 and e07"


def respond(client: openai.OpenAI, **fields: Any) -> Any:
    return client.responses.create(
        **{"model": "tiny", "input": TEXT, "temperature": 0, "max_output_tokens": 16, **fields}
    )


def chatted(client: openai.OpenAI, turns: list[Any]) -> Any:
    return client.chat.completions.create(model="tiny", messages=turns, temperature=0, max_tokens=16)


def test_an_answer_is_that_of_the_chat(client: openai.OpenAI) -> None:
    answer, chat = respond(client, metadata={"a": "b"}), chatted(client, [{"role": "user", "content": TEXT}])
    assert answer.output_text == chat.choices[0].message.content != ""
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.usage.output_tokens == 16
    assert answer.glider == chat.glider
    assert answer.metadata == {"a": "b"}


SCHEMA: dict[str, Any] = {"type": "object", "properties": {"e2": {"enum": [1, 2]}}, "required": ["e2"]}
FORMAT: dict[str, Any] = {"type": "json_schema", "name": "e2", "schema": {**SCHEMA, "additionalProperties": False}}


def test_an_answer_that_ends_is_completed(client: openai.OpenAI) -> None:
    answer = respond(client, text={"format": FORMAT}, max_output_tokens=100)
    assert (answer.status, answer.incomplete_details, answer.error) == ("completed", None, None)
    assert [item.status for item in answer.output] == ["completed"]
    assert json.loads(answer.output_text)["e2"] in (1, 2)
    assert answer.text.format.type == "json_schema"
    assert answer.text.format.schema_ == FORMAT["schema"]
    cut = respond(client, text={"format": FORMAT}, max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [item.status for item in cut.output] == ["incomplete"]


def test_a_stream_that_ends_is_completed(client: openai.OpenAI) -> None:
    with respond(client, text={"format": FORMAT}, max_output_tokens=100, stream=True) as one:
        events = list(one)
    assert events[-1].type == "response.completed"
    assert events[-1].response.status == events[-2].item.status == "completed"
    assert events[0].response.status == "in_progress"
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert json.loads(deltas)["e2"] in (1, 2)


def test_a_stream_that_fails_says_so(serve: Serve, tmp_path: Path) -> None:
    """A pass that breaks while an answer is being written; the event was not of the type `error`, and had no name."""
    switch = tmp_path / "break"
    (tmp_path / "sitecustomize.py").write_text(BREAKING, "utf8")
    served = serve(PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", BREAK=str(switch))
    events: list[tuple[str, dict[str, Any]]] = []
    body = {"model": "tiny", "input": TEXT, "max_output_tokens": 400, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{served.url}/v1/responses", json=body, timeout=60) as answer:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((name, json.loads(line.removeprefix("data: "))))
                if name == "response.output_text.delta":
                    switch.touch()
    assert all(name == event["type"] for name, event in events)
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    name, last = events[-1]
    assert (name, last["code"], last["param"]) == ("error", "internal_error", None)
    assert "out of memory, say" not in json.dumps(last)  # of the inside nothing is told
    switch.unlink()
    client = served.client()
    assert respond(client).status == "incomplete"  # the server goes on
    with respond(client, stream=True, max_output_tokens=400) as stream, pytest.raises(openai.APIError) as caught:
        for event in stream:
            if event.type == "response.output_text.delta":
                switch.touch()
    assert caught.value.code == "internal_error"


def test_steering_is_followed(client: openai.OpenAI) -> None:
    steered = respond(client, extra_body={"glider": {"verdict": "base"}}, max_output_tokens=1)
    assert steered.glider["experts"] == {}
    assert steered.usage.output_tokens == 1


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = respond(client)
    with respond(client, stream=True) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == events[-4].text == events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage == whole.usage
    assert events[-1].response.glider == whole.glider


def test_the_clients_own_stream_reads_it(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "tiny", "input": TEXT, "temperature": 0, "max_output_tokens": 16}
    with client.responses.stream(**settings) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(texts) == respond(client).output_text


def test_a_conversation_goes_on_with_the_items_that_came(client: openai.OpenAI) -> None:
    first = respond(client, instructions="be brief")
    follow = respond(
        client,
        instructions="be brief",
        input=[{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}]
        + [item.model_dump() for item in first.output]
        + [{"role": "user", "content": "and more"}],
    )
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "and more"},
    ]
    assert follow.output_text == chatted(client, turns).choices[0].message.content
    assert follow.usage.input_tokens == chatted(client, turns).usage.prompt_tokens


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "name": "f"}]),
        ("previous_response_id", "resp_1"),
        ("store", True),
        ("background", True),
        ("reasoning", {"effort": "low"}),
        ("include", ["reasoning.encrypted_content"]),
        ("top_logprobs", 3),
        ("top_logprobs", 21),
        ("truncation", "auto"),
        ("conversation", "c"),
        ("input", " "),
        ("input", [{"type": "function_call_output", "call_id": "a", "output": "b"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        ("max_output_tokens", 600),
        ("max_output_tokens", 0),
    ],
)
def test_what_cannot_be_followed_is_named(client: openai.OpenAI, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        respond(client, **{field: value})
    assert (caught.value.param or "").split(".")[0] == field


def test_a_model_that_is_none(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        respond(client, model="gpt-4")
