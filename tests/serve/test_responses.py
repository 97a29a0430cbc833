"""`/v1/responses` by the official client, beside the chat API."""

from typing import Any

import openai
import pytest

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
        ("tools", [{"type": "function", "name": "f", "parameters": {}}]),
        ("previous_response_id", "resp_1"),
        ("store", True),
        ("background", True),
        ("reasoning", {"effort": "low"}),
        ("include", ["message.output_text.logprobs"]),
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
