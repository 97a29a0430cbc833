"""Endpoints that mean harm: every reply ends in time and has an end, no key comes out, no prompt goes elsewhere."""

import base64
import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import quote

import pytest

from glider.errors import ConfigError, EndpointError
from glider.instructions.describers import Described, Task, describe_tasks, load_describer
from glider.instructions.endpoint import Endpoint
from glider.instructions.openai_embedder import openai_embedder

SECRET = 'sk-"of the/test'
TASK = Task((("a fine film", "positive"),))
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ERROR = b"HTTP/1.1 500 Error\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n"

Answer = Callable[[socket.socket, threading.Event], None]


class Hostile:
    """A server of raw bytes. It goes on until it is hung up on, or until the test is over."""

    def __init__(self, answer: Answer):
        self.answer, self.over, self.requests = answer, threading.Event(), 0
        self.heads: list[bytes] = []
        self.hung_up = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._server.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(20)
            self.requests += 1
            with suppress(OSError):
                content = b""
                while b"\r\n\r\n" not in content:
                    content += connection.recv(1 << 16)
                head, _, body = content.partition(b"\r\n\r\n")
                self.heads.append(head.lower())
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                while len(body) < length:  # what is not read is a connection that breaks
                    body += connection.recv(1 << 16)
                self.answer(connection, self.over)
            self.hung_up.set()

    def close(self) -> None:
        self.over.set()
        self._server.close()


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], Hostile]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    servers: list[Hostile] = []

    def start(answer: Answer) -> Hostile:
        servers.append(Hostile(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(server: Hostile, base_url: str | None = None, **settings: float) -> Described:
    settings = {"timeout": 0.3, "retries": 0, **settings}
    (described,) = describe_tasks(load_describer("openai:m", base_url=base_url or server.base_url, **settings), [TASK])
    return described


def dripping(beginning: bytes, drop: bytes) -> Answer:
    """The beginning, and then a drop now and again for as long as anybody listens."""

    def answer(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(beginning)
        while not over.wait(0.05):
            connection.sendall(drop)

    return answer


def flooding(beginning: bytes, flood: bytes) -> Answer:
    def answer(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(beginning)
        while not over.is_set():
            connection.sendall(flood)

    return answer


def once(content: bytes) -> Answer:
    return lambda connection, over: connection.sendall(content)


def refusal(message: str, head: bytes = b"") -> Answer:
    """A 400 with a message, as OpenAI sends it."""
    body = json.dumps({"error": {"message": message}}).encode()
    return once(b"HTTP/1.1 400 Bad\r\n%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body))


@pytest.mark.parametrize(
    "answer",
    [
        dripping(b"HTTP/1.1 ", b"2"),
        dripping(OK, b"X: y\r\n"),
        dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        dripping(OK + b"Content-Length: 1000000\r\n\r\n", b" "),
        dripping(ERROR + b"\r\n", b"1\r\n \r\n"),
        dripping(b"HTTP/1.1 401 No\r\nContent-Length: 1000000\r\n\r\n", b" "),
    ],
    ids=["status line", "headers", "interim replies", "body", "body of a 500", "body of a 401"],
)
def test_nothing_that_drips_is_waited_for(hostile, answer: Answer) -> None:
    server = hostile(answer)
    told = ask(server)
    assert not server.over.is_set()  # the endpoint would have gone on
    assert told.text is None and "none within 0.3 s" in (told.fault or "")


@pytest.mark.parametrize("beginning", [ERROR, OK + b"Transfer-Encoding: chunked\r\n"], ids=["500", "200"])
def test_a_reply_without_an_end_is_cut_at_its_bound_whatever_its_status(hostile, beginning: bytes) -> None:
    server = hostile(flooding(beginning + b"\r\n", b"10000\r\n" + b"x" * (1 << 16) + b"\r\n"))
    assert "a reply of more than 1000000 bytes" in (ask(server, timeout=30.0).fault or "")
    assert server.hung_up.wait(20)


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad", b"500 Error"])
@pytest.mark.parametrize("packing", [b"gzip", b"deflate, gzip", b"br"])
def test_a_packed_reply_is_not_unpacked(hostile, status: bytes, packing: bytes) -> None:
    bomb = gzip.compress(bytes(10 << 20))
    head = b"HTTP/1.1 %s\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (status, packing, len(bomb))
    assert f"a reply packed by {packing.decode()}" in (ask(hostile(once(head + bomb)), timeout=30.0).fault or "")


def test_the_key_is_no_packing(hostile) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: 0\r\n\r\n" % SECRET.encode()
    fault = ask(hostile(once(head)), timeout=30.0).fault or ""
    assert "packed by no known way" in fault and SECRET not in fault


@pytest.mark.parametrize(
    "echo",
    [
        SECRET,
        SECRET.upper(),
        quote(SECRET, safe=""),
        SECRET.replace('"', '\\"'),
        SECRET[:6] + "\x1b[0m" + SECRET[6:],
        SECRET[:6] + "\u200b" + SECRET[6:],
        "x" * 180 + SECRET,
    ],
)
def test_the_key_stands_in_no_fault_and_no_description(hostile, echo: str) -> None:
    def reply(status: bytes, value: object) -> Answer:
        body = json.dumps(value).encode()
        return once(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))

    refused = ask(hostile(reply(b"400 Bad", {"error": {"message": f"the key {echo} is wrong"}})), timeout=30.0)
    assert "HTTP 400" in (refused.fault or "")
    content = f"Classify the sentiment of films for {echo} alone."
    said = ask(hostile(reply(b"200 OK", {"choices": [{"message": {"content": content}}]})), timeout=30.0)
    for text in (refused.fault, said.text, said.fault):
        assert SECRET[:6].lower() not in (text or "").lower() and quote(SECRET)[:9] not in (text or "")


def test_what_is_secret_in_an_address_is_not_told(hostile) -> None:
    server = hostile(once(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"))
    address = server.base_url.replace("http://", "http://me:hunter22@") + "?token=tok-12345"
    told = ask(server, address, timeout=30.0)
    assert "HTTP 404" in (told.fault or "")
    assert "hunter22" not in (told.fault or "") and "tok-12345" not in (told.fault or "")
    assert Endpoint(argument="m", base_url=address).shown == server.base_url


def test_a_name_and_a_password_are_told_in_no_form_that_they_are_sent_in(hostile) -> None:
    basic = base64.b64encode(b"me:hunter@22").decode()
    server = hostile(refusal(f"no: Authorization: Basic {basic} of hunter@22"))
    fault = ask(server, server.base_url.replace("http://", "http://me:hunter%4022@"), timeout=30.0).fault or ""
    assert "HTTP 400" in fault and "Basic [secret]" in fault
    assert basic not in fault and "hunter" not in fault


def test_a_message_that_is_cut_within_the_key_does_not_tell_its_beginning(hostile) -> None:
    invisible = "\u200b" * ((1 << 16) - len("key ") - len(SECRET) + 1)
    fault = ask(hostile(refusal(f"{invisible}key {SECRET}")), timeout=30.0).fault or ""
    assert "HTTP 400" in fault and SECRET[:6] not in fault


@pytest.mark.parametrize("charset", ["hex", "undefined", "punycode", "utf-16"])
def test_a_reply_is_utf8_whatever_codec_it_names(hostile, charset: str) -> None:
    """Decoding a megabyte as punycode goes on for hours after the deadline."""
    server = hostile(refusal("no such model", b"Content-Type: text/plain; charset=" + charset.encode() + b"\r\n"))
    assert "HTTP 400: no such model" in (ask(server, timeout=30.0).fault or "")


def test_no_cookie_is_sent_back(hostile) -> None:
    """Cookies of thirty replies made a request of two megabytes."""
    server = hostile(once(OK + b"Set-Cookie: a=b; Max-Age=1000\r\nContent-Length: 13\r\n\r\n" + b'{"choices":1}'))
    endpoint = Endpoint(argument="m", base_url=server.base_url, timeout=30.0, retries=0, concurrency=1)
    assert endpoint.ask("chat", [{"messages": []}] * 2, 1000) == [{"choices": 1}] * 2
    assert len(server.heads) == 2 and not any(b"cookie" in head for head in server.heads)


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="an address in base_url"):
        _ = Endpoint(argument="m", base_url="http://[::1/v1").shown


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_prompt_goes_where_the_user_said_and_nowhere_else(hostile, status: int) -> None:
    elsewhere = hostile(once(OK + b"Content-Length: 2\r\n\r\n{}"))
    target = elsewhere.base_url.encode()
    head = b"HTTP/1.1 %d Moved\r\nLocation: %s/chat/completions\r\nContent-Length: 0\r\n\r\n" % (status, target)
    told = ask(hostile(once(head)), timeout=30.0)
    assert f"HTTP {status}, a redirect to {elsewhere.base_url}" in (told.fault or "")
    assert elsewhere.requests == 0


def test_after_a_dripping_reply_the_next_one_is_read(hostile) -> None:
    answers = iter([dripping(OK, b"X: y\r\n"), once(OK + b"Content-Length: 13\r\n\r\n" + b'{"choices":1}')])
    server = hostile(lambda connection, over: next(answers)(connection, over))
    endpoint = Endpoint(argument="m", base_url=server.base_url, timeout=0.3, retries=0)
    (late,) = endpoint.ask("chat", [{"messages": []}], 1000)
    assert isinstance(late, EndpointError)
    slower = endpoint.model_copy(update={"timeout": 30.0})
    assert slower.ask("chat", [{"messages": []}], 1000) == [{"choices": 1}]


def test_vectors_of_an_endpoint_are_bounded_too(hostile) -> None:
    server = hostile(dripping(ERROR + b"\r\n", b"1\r\n \r\n"))
    with pytest.raises(EndpointError, match=r"none within 0\.3 s"):
        openai_embedder("m", base_url=server.base_url, timeout=0.3, retries=0).embed(["a text"])
