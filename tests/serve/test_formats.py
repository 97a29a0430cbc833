"""`response_format`: answers are JSON of the schema that was asked for, whole and streamed, whatever the model."""

import json
from pathlib import Path
from typing import Any, Literal

import httpx2 as httpx
import jsonschema
import openai
import pydantic
import pytest

from .conftest import Served, serving
from .test_refusals import ASK, post

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["sentence", "answer", "label"]},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 2},
        "score": {"type": "integer", "minimum": 0, "maximum": 100},
        "sure": {"type": ["boolean", "null"]},
    },
    "required": ["kind", "words", "score", "sure"],
    "additionalProperties": False,
}
FORMAT: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "reply", "schema": SCHEMA, "strict": True}}


def asked(client: openai.OpenAI, text: str = "the e0 e03 and e07", **more: Any) -> Any:
    messages: list[Any] = [{"role": "user", "content": text}]
    settings: dict[str, Any] = {"response_format": FORMAT, "max_tokens": 300, "temperature": 0, **more}
    return client.chat.completions.create(model="tiny", messages=messages, **settings)


def fits(text: str, schema: dict[str, Any] = SCHEMA) -> dict[str, Any]:
    value = json.loads(text)
    jsonschema.validate(value, schema)
    return value


def test_an_answer_is_of_the_schema(client: openai.OpenAI) -> None:
    choice = asked(client).choices[0]
    assert choice.finish_reason == "stop"
    assert fits(choice.message.content)
    free = asked(client, response_format={"type": "text"}, max_tokens=16).choices[0]
    with pytest.raises(ValueError):
        json.loads(free.message.content)


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    chunks = list(asked(client, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == asked(client).choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_each_of_several_drawn_answers_is(client: openai.OpenAI) -> None:
    """With all that changes logits beside it, and the same again for the same seed."""
    more: dict[str, Any] = {"temperature": 1.5, "seed": 3, "n": 2, "top_p": 0.9, "frequency_penalty": 1.0}
    more |= {"logit_bias": {"5": 100, "6": -100}, "extra_body": {"top_k": 5}}
    first, again = asked(client, **more), asked(client, **more)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    assert all(fits(text) for text in texts)


def test_the_base_and_an_expert_keep_to_it_too(client: openai.OpenAI) -> None:
    for extra in ({"verdict": "base"}, {"experts": {"e1": 1.0}}):
        assert fits(asked(client, extra_body={"glider": extra}).choices[0].message.content)


def test_an_answer_that_is_cut_says_so(client: openai.OpenAI) -> None:
    choice = asked(client, max_tokens=8).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.content.startswith("{")


def test_text_is_continued_by_json(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "tiny", "prompt": ["a", "b e2"], "max_tokens": 300, "temperature": 0}
    answer = client.completions.create(**settings, extra_body={"response_format": FORMAT})
    assert all(fits(choice.text) for choice in answer.choices)


def test_any_object(client: openai.OpenAI) -> None:
    """A model that knows no end may write an object until it is cut; one that ends has written one."""
    for seed in range(2):
        more: dict[str, Any] = {"temperature": 1.0, "seed": seed, "max_tokens": 64}
        choice = asked(client, response_format={"type": "json_object"}, **more).choices[0]
        assert choice.finish_reason in ("stop", "length")
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


class Reply(pydantic.BaseModel):
    kind: Literal["sentence", "answer"]
    score: int = pydantic.Field(ge=0, le=9)


def test_the_clients_own_parser(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "the e2 e21 and"}]
    settings: dict[str, Any] = {"model": "tiny", "max_tokens": 200}
    chat = client.chat.completions.parse(messages=messages, response_format=Reply, **settings)
    assert isinstance(chat.choices[0].message.parsed, Reply)
    answer = client.responses.parse(model="tiny", input="the e2", text_format=Reply, max_output_tokens=200)
    assert isinstance(answer.output_parsed, Reply)
    assert answer.status == "completed"


def in_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def chain(length: int, key: str) -> dict[str, Any]:
    links: dict[str, Any] = {f"d{n}": {key: [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(length)}
    return {"$defs": {**links, f"d{length}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        chain(600, "allOf"),  # ended the process that compiled it
        {"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(2500)}},  # took a minute
        {"enum": ["x" * 70_000]},
        nested(40),
        {"type": "integer", "multipleOf": 999999937},
        {"type": "string", "pattern": "^" + "a?" * 4000 + "a" * 4000 + "$"},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "pattern": "("},
        {"$ref": "#"},
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"not": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"type": "string", "format": "nonsense"},
        {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]},
        {"type": "thing"},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "object", "x-guidance": {"lenient": True}, "not": {}},
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},  # wrote until it was cut
    ],
    ids=lambda schema: json.dumps(schema)[:30],
)
def test_a_schema_that_cannot_be_kept_is_refused(server: Served, schema: Any) -> None:
    answer = post(server, {**ASK, "response_format": in_format(schema)})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("response_format", "invalid_json_schema")


def test_a_list_of_linked_nodes_ends(client: openai.OpenAI) -> None:
    """A schema that comes back to itself where it need not is taken."""
    following = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
    properties = {"label": {"enum": ["a", "b"]}, "next": following}
    linked = {"type": "object", "properties": properties, "required": ["label", "next"], "additionalProperties": False}
    schema = {"$defs": {"node": linked}, "$ref": "#/$defs/node"}
    finished = [
        asked(client, response_format=in_format(schema), temperature=1.0, seed=seed).choices[0] for seed in range(3)
    ]
    assert any(fits(one.message.content, schema) for one in finished if one.finish_reason == "stop")


def test_a_schema_with_a_number_of_hundreds_of_digits_is_refused(server: Served) -> None:
    answer = post(server, {**ASK, "response_format": in_format({"const": 10**400})})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_object", "schema": {}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}),
        ("stop", ["x"]),
        ("stop_token_ids", [5]),
        ("ignore_eos", True),
        ("min_tokens", 3),
    ],
)
def test_what_does_not_go_with_it_is_named(server: Served, field: str, value: Any) -> None:
    answer = post(server, {**ASK, "response_format": FORMAT, field: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].split(".")[0] == field


def test_other_routes_name_their_own_field(server: Served) -> None:
    bad = {"type": "json_schema", "name": "x", "schema": {"not": {}}}
    answer = post(server, {"model": "tiny", "input": "a", "text": {"format": bad}}, "/v1/responses")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "text.format")
    body = {"model": "tiny", "prompt": "a", "response_format": in_format({"not": {}})}
    answer = post(server, body, "/v1/completions")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.slow
def test_the_demo_keeps_to_it(tmp_path: Path) -> None:
    """A vocabulary of 49,152 tokens, under the router and by the base."""
    schema = {
        "type": "object",
        "properties": {"sentence": {"type": "string", "maxLength": 60}, "words": {"enum": [1, 2, 3]}},
        "required": ["sentence", "words"],
        "additionalProperties": False,
    }
    with serving(tmp_path / "log") as served:
        client = served.client().with_options(timeout=600)
        for model in (card.id for card in list(client.models.list())[:2]):
            answer = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "Put the concepts together to form a sentence: dog, beach."}],
                response_format=in_format(schema),  # pyright: ignore[reportArgumentType]
                max_tokens=120,
                temperature=0,
            )
            assert answer.choices[0].finish_reason == "stop"
            assert fits(answer.choices[0].message.content or "", schema)
