"""`tools`: calls that a base's template writes are told, read and forced, by the official client."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pydantic
import pytest
import torch

from glider.experts.pool import Pool
from glider.inference.base_model import load_base

from ..conftest import byte_tokenizer, tiny_llama, write_random_expert
from .conftest import Served, serving
from .test_formats import in_format
from .test_refusals import ASK, post

TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }} {{ tool.function.parameters | tojson }}{% endfor %}"
    "{% endif %}{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% for call in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"enum": ["Rome", "Bonn"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["at", "days"],
    "additionalProperties": False,
}
RAIN: dict[str, Any] = {"type": "function", "function": {"name": "rain", "parameters": PARAMETERS}}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time"}}
QUESTION: list[Any] = [{"role": "user", "content": "Rain?"}]
ANSWER = 'Let me see.\n<tool_call>\n{"name": "rain", "arguments": {"at": "Rome", "days": 2}}\n</tool_call>'


def taught(template: str, tools: list[Any], answer: str) -> tuple[Any, Any]:
    """A tiny model that has learnt one answer by heart, and its tokenizer."""
    model, tokenizer = tiny_llama(), byte_tokenizer(chat=True)
    tokenizer.chat_template = template
    prompt: Any = tokenizer.apply_chat_template(QUESTION, tools=tools, tokenize=False, add_generation_prompt=True)
    first = len(tokenizer(prompt).input_ids)
    ids = torch.tensor([[*tokenizer(prompt + answer).input_ids, 1]])
    labels = ids.clone()
    labels[0, :first] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    with torch.enable_grad():
        for _ in range(400):
            loss = model(input_ids=ids, labels=labels).loss
            if loss.item() < 0.01:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss.item() < 0.05
    return model, tokenizer


@contextmanager
def caller_server(embedder_identity: Any, directory: Path) -> Iterator[Served]:
    """A pool whose base has a template that knows tools, and calls one of its own accord when it is asked alone."""
    for part in taught(TEMPLATE, [RAIN], ANSWER):
        part.save_pretrained(directory / "caller")
    base = load_base(str(directory / "caller"))
    pool = Pool.create(directory / "tiny", base.identity)
    for number in range(2):
        write_random_expert(pool.path / f"e{number}", base, seed=number, embedder=embedder_identity, profile=True)
        pool = pool.add(f"e{number}")
    options = ["--base", str(directory / "caller"), "--pool", str(pool.path)]
    with serving(directory / "log", *options, "--router", "glider(global=examples, p=-1.0)") as one:
        yield one


@pytest.fixture(scope="module")
def served(embedder_identity: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with caller_server(embedder_identity, tmp_path_factory.mktemp("tools")) as one:
        yield one


@pytest.fixture(scope="module")
def caller(served: Served) -> openai.OpenAI:
    return served.client()


def asked(client: openai.OpenAI, tools: list[Any], model: str = "tiny", **more: Any) -> Any:
    settings: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 160, "tools": tools, **more}
    return client.chat.completions.create(model=model, **settings)


def arguments(call: Any) -> dict[str, Any]:
    value = json.loads(call.function.arguments)
    jsonschema.validate(value, PARAMETERS)
    return value


def test_a_call_of_the_models_own_accord_is_read(caller: openai.OpenAI) -> None:
    choice = asked(caller, [RAIN], "caller").choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.type) == ("tool_calls", "Let me see.", "function")
    assert (call.function.name, arguments(call)) == ("rain", {"at": "Rome", "days": 2})
    chunks = [chunk.choices[0] for chunk in asked(caller, [RAIN], "caller", stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "Let me see."
    ((streamed,),) = [chunk.delta.tool_calls for chunk in chunks if chunk.delta.tool_calls]
    assert (streamed.index, streamed.function.name) == (0, "rain")
    assert streamed.function.arguments == call.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"


def test_a_call_of_no_tool_is_text(caller: openai.OpenAI) -> None:
    """The model has learnt to call `rain`; offered another tool under whose prompt it says the same, it calls none."""
    other = {"type": "function", "function": {**RAIN["function"], "name": "snow"}}
    choice = asked(caller, [other], "caller").choices[0]
    assert choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length")


def test_a_call_that_is_required_fits_whatever_the_model(caller: openai.OpenAI) -> None:
    for seed in range(3):
        more: dict[str, Any] = {"temperature": 1.5, "seed": seed, "tool_choice": "required", "max_tokens": 150}
        choice = asked(caller, [RAIN, TIME], parallel_tool_calls=False, **more).choices[0]
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert arguments(call) if call.function.name == "rain" else call.function.arguments == "{}"


def test_a_named_tool_is_the_one_that_is_called(caller: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "rain"}}
    for model in ("tiny", "caller", "e1"):
        (call,) = asked(caller, [TIME, RAIN], model, tool_choice=named).choices[0].message.tool_calls
        assert call.function.name == "rain" and arguments(call)
    chunks = [chunk.choices[0] for chunk in asked(caller, [TIME, RAIN], tool_choice=named, stream=True)]
    ((call,),) = [chunk.delta.tool_calls for chunk in chunks if chunk.delta.tool_calls]
    assert call.function.name == "rain" and arguments(call)
    assert not any(chunk.delta.content for chunk in chunks)


def test_strict_tools_are_kept_to_of_the_models_own_accord(caller: openai.OpenAI) -> None:
    strict = {"type": "function", "function": {**RAIN["function"], "strict": True}}
    (call,) = asked(caller, [strict], "caller").choices[0].message.tool_calls
    assert arguments(call) == {"at": "Rome", "days": 2}


class Rain(pydantic.BaseModel):
    days: int = pydantic.Field(ge=1, le=9)


def test_the_clients_own_parser(caller: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(Rain, name="rain")
    settings: dict[str, Any] = {"messages": QUESTION, "tools": [tool], "tool_choice": "required", "max_tokens": 100}
    answer = caller.chat.completions.parse(model="tiny", parallel_tool_calls=False, **settings)
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Rain)


def test_results_go_back_in_the_bases_own_form(caller: openai.OpenAI) -> None:
    message = asked(caller, [RAIN], "caller").choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "none"}
    answer = asked(caller, [RAIN], messages=[*QUESTION, message, result], max_tokens=2)
    tokenizer = byte_tokenizer(chat=True)
    turns = [*QUESTION, {"role": "assistant", "content": "Let me see.", "tool_calls": [_call_of(message)]}]
    written: Any = tokenizer.apply_chat_template(
        [*turns, {"role": "tool", "content": "none"}],
        tools=[{"type": "function", "function": {"name": "rain", "description": "", "parameters": PARAMETERS}}],
        chat_template=TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert answer.usage.prompt_tokens == len(tokenizer(written).input_ids)
    assert "Rome" in written and "<t>none" in written
    without = asked(caller, [RAIN], messages=[*QUESTION, message, result], max_tokens=2, tool_choice="none")
    assert without.usage.prompt_tokens < answer.usage.prompt_tokens


def _call_of(message: Any) -> dict[str, Any]:
    (call,) = message.tool_calls
    return {"type": "function", "function": {"name": "rain", "arguments": json.loads(call.function.arguments)}}


def test_tools_of_no_choice_are_not_told(served: Served, caller: openai.OpenAI) -> None:
    bare = caller.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=2)
    assert asked(caller, [RAIN], tool_choice="none", max_tokens=2).usage.prompt_tokens == bare.usage.prompt_tokens
    body = {"model": "tiny", "messages": QUESTION, "tools": [RAIN]}
    counted = post(served, body, "/tokenize").json()["count"]
    assert counted == asked(caller, [RAIN], max_tokens=2).usage.prompt_tokens > bare.usage.prompt_tokens


CALLED = {
    "role": "assistant",
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("tools", {"tools": [RAIN, RAIN]}),
        ("tools", {"tools": [{"type": "web_search"}]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": [RAIN], "tool_choice": "any"}),
        ("tool_choice", {"tools": [RAIN], "tool_choice": {"type": "function", "function": {"name": "snow"}}}),
        ("parallel_tool_calls", {"parallel_tool_calls": False}),
        ("stop", {"tools": [RAIN], "response_format": {"type": "json_object"}, "stop": "}"}),
        ("response_format", {"tools": [RAIN], "response_format": in_format({"not": {}})}),
        ("stop", {"tools": [RAIN], "tool_choice": "required", "stop": "}"}),
        ("ignore_eos", {"tools": [RAIN], "parallel_tool_calls": False, "ignore_eos": True}),
        ("functions", {"functions": [RAIN["function"]]}),
        ("messages", {"messages": [*QUESTION, {"role": "tool", "tool_call_id": "a", "content": "x"}]}),
        ("messages", {"messages": [*QUESTION, {"role": "user", "content": "x", "tool_calls": CALLED["tool_calls"]}]}),
        ("messages", {"messages": [*QUESTION, {"role": "assistant"}]}),
        (
            "messages",
            {
                "messages": [
                    *QUESTION,
                    {
                        "role": "assistant",
                        "tool_calls": [{**CALLED["tool_calls"][0], "function": {"name": "f", "arguments": "[1]"}}],
                    },
                ]
            },
        ),
    ],
)
def test_what_does_not_fit_is_named(served: Served, param: str, fields: dict[str, Any]) -> None:
    answer = post(served, {"model": "tiny", "messages": QUESTION, "max_tokens": 2, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].split(".")[0] == param


def test_a_schema_that_cannot_be_kept_names_its_tool(served: Served) -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}
    body = {"model": "tiny", "messages": QUESTION, "tools": [RAIN, bad], "tool_choice": "required"}
    answer = post(served, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools.1.function.parameters")
    assert post(served, {**body, "tool_choice": "auto", "max_tokens": 2}).status_code == 200  # nothing keeps to it


def test_a_base_whose_template_knows_no_tools(server: Served) -> None:
    answer = post(server, {**ASK, "tools": [RAIN]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    assert "template" in answer.json()["error"]["message"]
    messages = [*QUESTION, CALLED, {"role": "tool", "tool_call_id": "a", "content": "x"}]
    answer = post(server, {**ASK, "messages": messages})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


REPLY: dict[str, Any] = {
    "type": "object",
    "properties": {"note": {"enum": ["<tool_call>", "none"]}, "sure": {"type": "boolean"}},
    "required": ["note", "sure"],
    "additionalProperties": False,
}


def test_an_answer_in_a_form_beside_tools_is_of_the_form_or_a_call(caller: openai.OpenAI) -> None:
    """JSON of the schema, in which a mark is text, or a call that fits; a bias decides here which."""
    tokenizer = byte_tokenizer(chat=False)
    for begin, reason in (("<", "tool_calls"), ("{", "stop")):
        (first,) = tokenizer(begin).input_ids
        more: dict[str, Any] = {"temperature": 1.0, "logit_bias": {str(first): 100}, "parallel_tool_calls": False}
        for seed in range(3):
            more |= {"seed": seed, "response_format": in_format(REPLY)}
            choice = asked(caller, [RAIN], **more).choices[0]
            assert choice.finish_reason == reason
            if reason == "stop":
                assert choice.message.tool_calls is None
                jsonschema.validate(json.loads(choice.message.content), REPLY)
            else:
                assert choice.message.content is None and arguments(choice.message.tool_calls[0])
            streamed = [chunk.choices[0] for chunk in asked(caller, [RAIN], stream=True, **more)]
            assert "".join(chunk.delta.content or "" for chunk in streamed) == (choice.message.content or "")
            assert streamed[-1].finish_reason == reason


def test_a_forced_call_leaves_nothing_to_the_form(caller: openai.OpenAI) -> None:
    form: dict[str, Any] = {"response_format": in_format(REPLY), "parallel_tool_calls": False}
    choice = asked(caller, [RAIN], tool_choice="required", **form).choices[0]
    assert (choice.finish_reason, choice.message.content, len(choice.message.tool_calls)) == ("tool_calls", None, 1)
    told = asked(caller, [RAIN], tool_choice="none", response_format=in_format(REPLY)).choices[0]
    jsonschema.validate(json.loads(told.message.content), REPLY)
