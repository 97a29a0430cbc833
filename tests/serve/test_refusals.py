"""What a server refuses, and that it says why in OpenAI's words."""

import json
import select
import socket
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from .conftest import Serve, Served

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


def post(served: Served, body: Any, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body, headers=headers, timeout=120)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "xml"}),
        ("functions", []),
        ("audio", {}),
        ("nonsense", 1),
        ("best_of", 2),
        ("store", True),
        ("n", 0),
        ("temperature", -1),
        ("temperature", "warm"),
        ("top_p", 0),
        ("max_tokens", 0),
        ("max_tokens", 2.5),
        ("stop", ["x"] * 17),
        ("logit_bias", {"999": 1}),
        ("logit_bias", {"x": 1}),
        ("top_logprobs", 3),
        ("stream_options", {"include_usage": True}),
        ("messages", []),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "user", "content": " "}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("glider", {"verdict": "maybe"}),
        ("glider", {"exclude": ["e9"]}),
        ("glider", {"exclude": ["e0", "e1", "e2", "e3"]}),
        ("glider", {"experts": {"e0": 0}}),
        ("glider", {"experts": {"e0": 1e30}}),
        ("glider", {"experts": {"e0": 10.5}}),
        ("glider", {"experts": {"e0": 1e-46}}),
        ("glider", {"experts": {"e0": 1}, "exclude": ["e1"]}),
        ("glider", {"experts": {"e0": 1}, "description": "x"}),
        ("glider", {"verdict": "base", "examples": [["a", "b"]]}),
        ("glider", []),
        ("temperature", 1e-40),
        ("repetition_penalty", 1e-40),
        ("stop_token_ids", [259]),
        ("stop_token_ids", [-1]),
        ("logit_bias", []),
        ("logit_bias", {"5": 1, "05": 2}),
    ],
)
def test_a_field_that_does_not_fit_is_named(server: Served, field: str, value: Any) -> None:
    answer = post(server, {**ASK, field: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].split(".")[0] == field
    assert error["type"] == "invalid_request_error"
    assert error["code"]


@pytest.mark.parametrize(
    ("param", "path", "fields"),
    [
        ("stop", "/v1/chat/completions", {"stop": {}}),
        ("messages.0.content", "/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}),
        ("messages.0.content.0.text", "/v1/chat/completions",
         {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        ("glider.experts", "/v1/chat/completions", {"glider": {"experts": 5}}),
        ("max_completion_tokens", "/v1/chat/completions", {"max_tokens": None, "max_completion_tokens": 600}),
        ("prompt.1", "/v1/completions", {"prompt": [1, "a"]}),
        ("prompt", "/v1/completions", {"prompt": "a" * 600}),
        ("prompt", "/v1/completions", {"prompt": ["a"] * 17}),
        ("prompt", "/v1/completions", {"prompt": "a" * 600, "max_tokens": 0, "echo": True, "logprobs": 1}),
        ("input.0", "/v1/embeddings", {"input": [1, 2]}),
        ("prompt", "/v1/route", {"prompt": "a" * 600}),
        ("messages", "/v1/route", {"messages": [{"role": "user", "content": "a" * 600}]}),
    ],
)  # fmt: skip
def test_the_field_has_its_own_name(server: Served, param: str, path: str, fields: dict[str, Any]) -> None:
    """Branches of unions stood in it (`stop.str`), and other fields; a prompt longer than the context was scored."""
    asked = {name: value for name, value in ASK.items() if path.endswith("chat/completions") or name == "model"}
    answer = post(server, {**asked, **fields}, path)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize(
    ("path", "fields", "param", "message"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": None}]}, "messages.0.content", "is null"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages.0.content", "is missing"),
        ("/v1/chat/completions", {"messages": [{"role": None, "content": "a"}]}, "messages.0.role", "is null"),
        ("/v1/chat/completions", {"messages": None}, "messages", "is null"),
        ("/v1/chat/completions", {"messages": [None]}, "messages.0", "valid object, not null"),
        ("/v1/chat/completions", {"stop": ["a", None]}, "stop.1", "valid string, not null"),
        ("/v1/chat/completions", {"glider": {"examples": [None]}}, "glider.examples.0", "valid list, not null"),
        ("/v1/chat/completions", {"response_format": {"type": None}}, "response_format.type", "a', not null"),
        ("/v1/chat/completions", {"response_format": {}}, "response_format.type", "is missing"),
        ("/v1/chat/completions", {"response_format": {"type": "xml"}}, "response_format.type", "one of 'text', 'js"),
        ("/v1/chat/completions", {"response_format": {"type": "json_schema", "json_schema": None}},
         "response_format.json_schema", "is null"),
        ("/v1/completions", {"prompt": None}, "prompt", "is null"),
        ("/v1/completions", {}, "prompt", "is missing"),
        ("/v1/route", {}, "prompt", "one of the fields prompt or messages is wanted, and none is there"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt", "more than one"),
    ],
)  # fmt: skip
def test_null_and_nothing_are_told_apart(
    server: Served, path: str, fields: dict[str, Any], param: str, message: str
) -> None:
    """Null was "missing", of the content of a turn without a name of its own, and its branch stood in the name."""
    asked = ASK if path.endswith("chat/completions") else {"model": "tiny"}
    answer = post(server, {**asked, **fields}, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), answer.text
    assert message in error["message"], error["message"]


@pytest.mark.parametrize(
    ("prompt", "param", "message"),
    [
        ([], "prompt", "at least 1 item"),
        ([[]], "prompt.0", "at least 1 item"),
        (5, "prompt", "valid string or a valid list"),
        (["a", 5], "prompt.1", "valid string"),
        ([[1], "a"], "prompt.1", "valid list"),
        (["a"] * 2000, "prompt", "at most 1024 items"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_of_several_forms_the_nearest_is_told(server: Served, prompt: Any, param: str, message: str) -> None:
    """No prompt at all should have been a valid string, two thousand texts a valid integer."""
    answer = post(server, {"model": "tiny", "prompt": prompt}, "/v1/completions")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), answer.text
    assert message in error["message"] and "after validation" not in error["message"]


def test_a_name_of_digits_is_no_number(server: Served) -> None:
    """Python reads no number of more than 4,300 digits: a 500."""
    answer = post(server, {**ASK, "9" * 5000: 1})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'"text"'])
def test_a_body_that_is_no_object_has_no_field(server: Served, content: bytes) -> None:
    """Of one that was empty the field None was missing."""
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/completions", content=content, headers=headers, timeout=120)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, None, "invalid_json"), answer.text


def test_null_is_as_good_as_absent(server: Served) -> None:
    nulls = dict.fromkeys(("tools", "response_format", "stop", "n", "seed", "logit_bias", "user"))
    assert post(server, {**ASK, **nulls}).status_code == 200


def test_models_that_are_none(server: Served) -> None:
    for name in ("gpt-4", "", "tiny ", "../tiny", "e9", "tiny:"):
        answer = post(server, {**ASK, "model": name})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), name
    answer = post(server, {**ASK, "model": "e1", "glider": {"exclude": ["e2"]}})
    assert answer.json()["error"]["param"] == "glider.exclude"


def test_prompts_that_are_too_long(server: Served) -> None:
    long = [{"role": "user", "content": "a" * 600}]
    error = post(server, {**ASK, "messages": long}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    error = post(server, {**ASK, "max_tokens": 600}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    fitting = post(server, {"model": "tiny", "messages": [{"role": "user", "content": "a" * 500}], "temperature": 0})
    assert fitting.json()["usage"]["total_tokens"] <= 512


def test_bodies_that_are_none(server: Served) -> None:
    url = f"{server.url}/v1/chat/completions"
    kind = {"content-type": "application/json"}
    large = b'{"model": "pool", "prompt": [' + b"1," * 100_000  # parsed beside the event loop
    for content in (b"{", b"[]", b"null", b'"x"', b"\xff", large, large + b"1]}" + b"," * 200_001, b"[" * 70_000):
        answer = httpx.post(url, content=content, headers=kind)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error"), content
    assert httpx.post(url, content=json.dumps(ASK), headers={"content-type": "text/plain"}).status_code == 415
    assert httpx.get(url).json()["error"]["code"] == "method_not_allowed"
    assert httpx.get(f"{server.url}/nothing").json()["error"]["code"] == "not_found"


def test_requests_are_what_they_say(server: Served) -> None:
    """What stands elsewhere than in the body was ignored."""
    url, kind = f"{server.url}/v1/chat/completions", {"content-type": "application/json"}
    answer = httpx.post(f"{url}?stream=true", json=ASK)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")
    answer = httpx.post(url, content=json.dumps(ASK), headers={**kind, "content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    twice = [("content-type", "application/json"), ("content-type", "text/plain")]
    answer = httpx.post(url, content=json.dumps(ASK), headers=twice)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_headers")


def test_refusals_of_every_kind_are_counted(server: Served) -> None:
    """Those of the framework and of the guards were not."""

    def count(code: str) -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        name = f'glider:refused_requests_total{{code="{code}"}} '
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    codes = ("unsupported_parameter", "invalid_json", "not_found", "origin_not_allowed")
    before = [count(code) for code in codes]
    post(server, {**ASK, "nonsense": 1})
    url, kind = f"{server.url}/v1/chat/completions", {"content-type": "application/json"}
    httpx.post(url, content=b"{", headers=kind)
    httpx.get(f"{server.url}/nothing")
    post(server, ASK, Origin="http://evil.example")
    assert [count(code) for code in codes] == [one + 1 for one in before]


def test_bodies_that_are_too_large(server: Served) -> None:
    large = {**ASK, "messages": [{"role": "user", "content": "a" * (5 * 2**20)}]}
    answer = post(server, large)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")

    def chunks() -> Any:
        yield json.dumps(large).encode()

    url, kind = f"{server.url}/v1/chat/completions", {"content-type": "application/json"}
    answer = httpx.post(url, content=chunks(), headers=kind)  # of a length that is not told
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_pages_of_others_may_not_ask(server: Served) -> None:
    host = server.url.removeprefix("http://")
    assert post(server, ASK, Origin="http://evil.example").json()["error"]["code"] == "origin_not_allowed"
    assert post(server, ASK, Origin="null").status_code == 403
    assert post(server, ASK, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert post(server, ASK, Host="evil.example").json()["error"]["code"] == "host_not_allowed"
    assert post(server, ASK, Origin=server.url).status_code == 200
    assert post(server, ASK, Host=host.replace("127.0.0.1", "localhost")).status_code == 200


def test_requests_that_smuggle(server: Served) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(ASK)
    for more in (
        f"Content-Length: {len(body)}\r\nContent-Length: 5\r\n",
        f"Content-Length: {len(body)}\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        f"Content-Length: {len(body)}\r\nHost: other\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as link:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            link.sendall(f"{head}{more}Connection: close\r\n\r\n{body}".encode())
            answer = b"".join(iter(lambda: link.recv(4096), b"")).decode()
        assert answer.startswith(("HTTP/1.1 400", "HTTP/1.1 501")), (more, answer)


def test_the_client_sees_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**ASK, "parallel_tool_calls": True})
    assert (caught.value.param, caught.value.code) == ("parallel_tool_calls", "unsupported_parameter")


def test_a_request_id_comes_back(server: Served) -> None:
    assert post(server, ASK, **{"X-Request-Id": "mine-7"}).headers["x-request-id"] == "mine-7"
    strange = post(server, ASK, **{"X-Request-Id": "a b"}).headers["x-request-id"]
    assert len(strange) == 24


def test_a_slow_body_is_not_waited_for(serve: Serve) -> None:
    served = serve("--body-timeout", "0.5")
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as link:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        link.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert b"408" in link.recv(4096)
    with socket.create_connection((host, int(port)), timeout=30) as link:  # a byte now and then was waited for
        link.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode())
        while not select.select([link], [], [], 0.1)[0]:
            link.sendall(b" ")
        assert b"408" in link.recv(4096)
    for begun in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: "):  # the head was waited for without end
        with socket.create_connection((host, int(port)), timeout=30) as link:
            link.sendall(begun)
            assert link.recv(4096) == b""
    with httpx.Client() as link:  # one that comes in time is not cut off
        for _ in range(2):
            assert link.post(f"{served.url}/v1/chat/completions", json=ASK, timeout=60).status_code == 200


def test_a_router_that_the_pool_cannot_serve_is_told_without_the_directory_of_the_pool(
    server: Served, pool_directory: Path
) -> None:
    answer = post(server, {**ASK, "model": "tiny:glider(global=lorauter)"})
    assert answer.status_code == 400 and "train-router" in answer.text
    assert str(pool_directory.parent) not in answer.text


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "ab " * 10**6}]},
            "messages",
            "20000 tokens",
        ),
        ("/v1/completions", {"prompt": "a" * 10**6}, "prompt", "20000 tokens"),
        ("/v1/completions", {"prompt": ["ab " * 1000] * 1000}, "prompt", "1000 answers"),
        ("/v1/route", {"prompt": "\U0001f600" * 10**5}, "prompt", "20000 tokens"),
        ("/tokenize", {"prompt": "a " * 10**6}, "prompt", "200000 tokens"),
        ("/v1/embeddings", {"input": ["fine", "ab " * 10**6]}, "input", "512 tokens"),
    ],
)
def test_a_text_far_beyond_the_context_is_not_tokenised_to_its_end(
    server: Served, path: str, body: dict[str, Any], param: str, message: str
) -> None:
    """Four megabytes took twelve seconds, in which no other request was prepared."""
    answer = post(server, {"model": "tiny", **body}, path)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param and message in answer.json()["error"]["message"]


def test_a_description_is_a_sentence(server: Served) -> None:
    answer = post(server, {**ASK, "glider": {"description": "ab " * 10**6}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "glider.description")


def test_a_long_text_is_still_counted(server: Served) -> None:
    text = "ab " * 20_000
    told = post(server, {"prompt": text}, "/tokenize").json()
    assert told["count"] == len(told["tokens"]) > 20_000
