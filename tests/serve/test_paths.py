"""Methods and paths that no route has as they were written: answered as was meant, or refused in OpenAI's words."""

import socket
from typing import Any

import httpx2 as httpx
import openai
import pytest

from .conftest import Serve, Served
from .test_refusals import ASK, post

GETS = ("/", "/health", "/ready", "/version", "/load", "/metrics", "/openapi.json")
V1_GETS = ("/v1/models", "/v1/models/tiny", "/v1/pool")


@pytest.mark.parametrize("path", [*GETS, *V1_GETS])
def test_head_is_get_without_a_body(server: Served, path: str) -> None:
    """It was refused, which probes and load balancers take for a server that is down."""
    head, get = httpx.head(f"{server.url}{path}"), httpx.get(f"{server.url}{path}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    if path not in ("/metrics", "/load"):  # which the requests themselves change
        assert head.headers["content-length"] == get.headers["content-length"]


def test_a_connection_stands_after_a_head(server: Served) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    ask = f"/health HTTP/1.1\r\nHost: {host}:{port}\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(f"HEAD {ask}\r\nHEAD /nothing HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        link.sendall(f"GET {ask}Connection: close\r\n\r\n".encode())
        replies = b"".join(iter(lambda: link.recv(4096), b"")).split(b"\r\n\r\n")
    assert [reply.split(b"\r\n")[0][9:12] for reply in replies[:3]] == [b"200", b"404", b"200"]
    assert replies[3:] == [b'{"status":"ok"}']


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("OPTIONS", "/health", "GET, HEAD"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("HEAD", "/v1/chat/completions", "POST"),
        ("GET", "/v1/chat/completions/", "POST"),
        ("PUT", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/tiny", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
        ("TRACE", "/", "GET, HEAD"),
        ("NONSENSE", "/v1/pool", "GET, HEAD"),
    ],
)
def test_another_method_is_told_those_there_are(server: Served, method: str, path: str, allowed: str) -> None:
    answer = httpx.request(method, f"{server.url}{path}")
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("method_not_allowed", "invalid_request_error")
        assert allowed.replace(", ", " or ") in error["message"]


@pytest.mark.parametrize("path", [*GETS[1:], *V1_GETS])
def test_a_slash_at_the_end_is_as_good_as_none(server: Served, path: str) -> None:
    """Of the models it was a 404 that named none, elsewhere a redirect to an address without https."""
    answer = httpx.get(f"{server.url}{path}/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == httpx.get(f"{server.url}{path}").headers["content-type"]


def test_a_request_with_a_slash_at_its_end_is_answered(server: Served) -> None:
    assert post(server, ASK, "/v1/chat/completions/").json()["object"] == "chat.completion"
    assert post(server, {**ASK, "nonsense": 1}, "/v1/chat/completions/").json()["error"]["param"] == "nonsense"
    client = openai.OpenAI(base_url=f"{server.url}/v1/", api_key="none", max_retries=0)
    with client:
        assert client.models.retrieve("tiny").id == "tiny"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/models", "/v1/models"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/v1/v1/models", "/v1/models"),
        ("//v1/models", "/v1/models"),
        ("/v1/health", "/health"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1", "/openapi.json"),
        ("/v1/", "/openapi.json"),
        ("//", "/openapi.json"),
        ("/docs", "/openapi.json"),
        ("/v1/models/a/../b/" + "c" * 300, None),
        ("/" + "x" * 5000, "/openapi.json"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_an_unknown_path_is_told_the_one_that_was_meant(
    server: Served, method: str, path: str, meant: str | None
) -> None:
    answer = httpx.request(method, f"{server.url}{path}")
    if meant is None:
        assert answer.status_code in (404, 405)
        return
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("not_found", "not_found_error", None)
    assert meant in error["message"] and len(error["message"]) < 400


def test_the_guards_stand_before_these_too(serve: Serve, tmp_path: Any) -> None:
    """Without a key: what is open is so for HEAD and with a slash, and nothing else is."""
    keys = tmp_path / "keys.json"
    keys.write_text('{"keys": [{"name": "a", "sha256": "%s"}]}' % ("0" * 64))
    served = serve("--api-key-file", str(keys))
    for path in ("/health", "/health/", "/ready", "/version/"):
        assert httpx.head(f"{served.url}{path}").status_code == 200, path
    for path in ("/metrics", "/metrics/", "/v1/models", "/v1/models/", "/nothing", "/health//", "//health"):
        for method in ("GET", "HEAD", "OPTIONS"):
            assert httpx.request(method, f"{served.url}{path}").status_code == 401, (method, path)
    assert httpx.head(f"{served.url}/health", headers={"Host": "evil.example"}).status_code == 403


def test_a_request_for_another_protocol_is_answered_in_this_one(serve: Serve) -> None:
    """The log then advised, twice for each, to install a package of the web server's."""
    served = serve()
    for protocol in ("websocket", "h2c"):
        headers = {"Connection": "Upgrade", "Upgrade": protocol, "Sec-WebSocket-Version": "13"}
        headers["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
        assert httpx.get(f"{served.url}/v1/models", headers=headers).json()["object"] == "list"
        assert httpx.get(f"{served.url}/nothing", headers=headers).status_code == 404
        assert post(served, ASK, **headers).status_code == 200
    served.stop()
    log = served.log.read_text("utf8")
    assert "pip install" not in log and "pgrade" not in log
