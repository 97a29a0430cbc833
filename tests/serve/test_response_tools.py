"""Functions that a model calls through `/v1/responses`, by the official client."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from .conftest import Served
from .test_refusals import post
from .test_tools import PARAMETERS, RAIN, caller_server

RAINING: dict[str, Any] = {"type": "function", "name": "rain", "parameters": PARAMETERS, "strict": None}
CALL: dict[str, Any] = {"type": "function_call", "call_id": "a", "name": "rain", "arguments": "{}"}
RESULT: dict[str, Any] = {"type": "function_call_output", "call_id": "a", "output": "none"}


@pytest.fixture(scope="module")
def served(embedder_identity: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with caller_server(embedder_identity, tmp_path_factory.mktemp("responses")) as one:
        yield one


@pytest.fixture(scope="module")
def caller(served: Served) -> openai.OpenAI:
    return served.client()


def respond(client: openai.OpenAI, model: str = "caller", **fields: Any) -> Any:
    settings: dict[str, Any] = {"input": "Rain?", "temperature": 0, "max_output_tokens": 160, "tools": [RAINING]}
    return client.responses.create(model=model, **{**settings, **fields})


def test_a_call_is_an_item_of_its_own(caller: openai.OpenAI) -> None:
    answer = respond(caller)
    text, call = answer.output
    assert (answer.status, text.type, answer.output_text) == ("completed", "message", "Let me see.")
    assert (call.type, call.status, call.name) == ("function_call", "completed", "rain")
    assert json.loads(call.arguments) == {"at": "Rome", "days": 2}
    assert (answer.tools[0].name, answer.tools[0].strict, answer.tool_choice) == ("rain", False, "auto")
    assert answer.parallel_tool_calls is True


def test_a_stream_tells_the_same_items(caller: openai.OpenAI) -> None:
    whole = respond(caller)
    with respond(caller, stream=True) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[-6:] == [
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))

    def plain(items: Any) -> list[dict[str, Any]]:
        return [item.model_dump(exclude={"id", "call_id"}) for item in items]

    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert plain(done) == plain(events[-1].response.output) == plain(whole.output)
    added = [event for event in events if event.type == "response.output_item.added"]
    assert [(event.output_index, event.item.status) for event in added] == [(0, "in_progress"), (1, "in_progress")]
    assert [event.item.id for event in added] == [item.id for item in done]
    assert added[1].item.arguments == "" and added[0].item.content == []


class Rain(pydantic.BaseModel):
    at: str = pydantic.Field(pattern="^(Rome|Bonn)$")
    days: int = pydantic.Field(ge=1, le=9)


def test_the_clients_own_stream_and_parser_read_it(caller: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "caller", "input": "Rain?", "temperature": 0, "tools": [RAINING]}
    with caller.responses.stream(**settings, max_output_tokens=160) as stream:
        deltas = [event for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert deltas[-1].snapshot == final.output[1].arguments  # pyright: ignore
    tool = openai.pydantic_function_tool(Rain)
    flat: dict[str, Any] = {"type": "function", **tool["function"], "name": "rain"}
    answer = caller.responses.parse(
        model="tiny", input="Rain?", tools=[flat], tool_choice="required", parallel_tool_calls=False,
        max_output_tokens=160,
    )  # fmt: skip
    (call,) = answer.output
    assert Rain.model_validate_json(call.arguments)  # pyright: ignore
    assert answer.parallel_tool_calls is False


def test_items_go_back_as_they_came(caller: openai.OpenAI) -> None:
    """The prompt of a conversation that goes on is that of the chat API."""
    first = respond(caller)
    items = [{"role": "user", "content": "Rain?"}, *(item.model_dump() for item in first.output)]
    result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "none"}
    second = respond(caller, input=[*items, result], max_output_tokens=2)
    call = {"name": "rain", "arguments": first.output[1].arguments}
    turns: list[Any] = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "Let me see.",
         "tool_calls": [{"id": "a", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "a", "content": "none"},
    ]  # fmt: skip
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 2, "tools": [RAIN]}
    chat = caller.chat.completions.create(model="caller", messages=turns, **settings)
    assert second.usage.input_tokens == chat.usage.prompt_tokens  # pyright: ignore
    assert second.output_text == chat.choices[0].message.content
    parts = {**result, "output": [{"type": "input_text", "text": "none"}]}
    assert respond(caller, input=[*items, parts], max_output_tokens=2).usage.input_tokens == second.usage.input_tokens


def test_a_named_function_is_called(caller: openai.OpenAI) -> None:
    choice = {"type": "function", "name": "rain"}
    answer = respond(caller, "tiny", tool_choice=choice)
    (call,) = answer.output
    assert (call.name, answer.tool_choice.name) == ("rain", "rain")
    assert respond(caller, tool_choice="none", max_output_tokens=2).usage.input_tokens < answer.usage.input_tokens


def test_nothing_of_tools_is_nothing(caller: openai.OpenAI) -> None:
    answer = respond(caller, tools=[], include=[], max_output_tokens=2)
    assert (answer.tools, answer.tool_choice, answer.parallel_tool_calls) == ([], "none", False)


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("tools.0.type", {"tools": [{"type": "web_search"}]}),
        ("tools.0.defer_loading", {"tools": [{**RAINING, "defer_loading": True}]}),
        ("tools.0.parameters", {"tools": [{**RAINING, "strict": True, "parameters": {"type": "object", "not": {}}}]}),
        ("tools", {"tools": [RAINING, RAINING]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": [RAINING], "tool_choice": {"type": "function", "name": "snow"}}),
        ("tool_choice.type", {"tools": [RAINING], "tool_choice": {"type": "allowed_tools", "tools": []}}),
        ("parallel_tool_calls", {"parallel_tool_calls": False}),
        ("max_tool_calls", {"tools": [RAINING], "max_tool_calls": 1}),
        ("include.0", {"include": ["reasoning.encrypted_content"]}),
        ("input", {"input": [{"role": "user", "content": "a"}, RESULT]}),
        ("input", {"input": [{"role": "user", "content": "a"}, {**CALL, "arguments": "[1]"}, RESULT]}),
        ("input.1.caller", {"input": [{"role": "user", "content": "a"}, {**CALL, "caller": {"type": "direct"}}]}),
        ("input.0", {"input": [{"type": "item_reference", "id": "msg_1"}]}),
        ("input", {"input": [{"role": "user", "content": "a"},
                             {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "so"}]}]}),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(served: Served, param: str, fields: dict[str, Any]) -> None:
    body = {"model": "caller", "input": "Rain?", "max_output_tokens": 2, **fields}
    answer = post(served, body, "/v1/responses")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
