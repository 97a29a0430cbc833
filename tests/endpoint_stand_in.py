"""A stand-in for a model endpoint on the loopback interface, well-behaved until told otherwise."""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from glider.instructions.cache import Cache

KEY = "sk-of-the-test"
SENTENCE = "Classify the sentiment of a film review, which needs an ear for tone."


@dataclass
class Reply:
    """One reply of the stand-in. `drop` closes the connection after so many bytes of the body."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before anything is sent
    drop: int | None = None
    trickle: float = 0.0  # seconds between single bytes of the body


def said(text: Any, **usage: int) -> dict[str, Any]:
    """A chat completion with that content."""
    usage = usage or {"prompt_tokens": 200, "completion_tokens": 20}
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}], "usage": usage}


def unit(text: str, width: int = 16) -> list[float]:
    """A vector that depends on the text alone."""
    digest = hashlib.sha256(text.encode()).digest()
    return [byte / 128 - 1 for byte in digest[:width]]


@dataclass
class EndpointStandIn:
    """What it was asked, and what it answers: `replies` in turn, then what `answer` makes of a request."""

    base_url: str = ""
    replies: list[Reply] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], Any] | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    busy: int = 0
    busiest: int = 0
    lock: Any = field(default_factory=threading.Lock)

    key = KEY
    sentence = SENTENCE

    def will(self, body: Any = b"", **how: Any) -> None:
        """Queue a reply (`Reply`'s fields)."""
        self.replies.append(Reply(body, **how))

    def says(self, text: Any, **usage: int) -> None:
        """Queue a chat completion with that content."""
        self.will(said(text, **usage))

    def reply(self, request: dict[str, Any]) -> Reply:
        with self.lock:
            if self.replies:
                return self.replies.pop(0)
        if self.answer is not None:
            made = self.answer(request)
            return made if isinstance(made, Reply) else Reply(made)
        if "input" in request:
            data = [{"index": i, "embedding": unit(text)} for i, text in enumerate(request["input"])]
            return Reply({"data": data[::-1], "usage": {"prompt_tokens": 9}})
        return Reply(said(SENTENCE))


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20
    endpoint: EndpointStandIn

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        endpoint = self.endpoint
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with endpoint.lock:
            endpoint.requests.append(request)
            endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
            endpoint.busy += 1
            endpoint.busiest = max(endpoint.busiest, endpoint.busy)
        try:
            self._send(endpoint.reply(request))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has given up
        finally:
            with endpoint.lock:
                endpoint.busy -= 1

    def _send(self, reply: Reply) -> None:
        time.sleep(reply.delay)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        if reply.drop == 0:
            return self._hang_up()
        self.send_response(reply.status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **reply.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if reply.trickle:
            for i in range(len(body)):
                self.wfile.write(body[i : i + 1])
                time.sleep(reply.trickle)
            return None
        self.wfile.write(body[: reply.drop])
        return self._hang_up() if reply.drop is not None else None

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointStandIn]:
    """A running stand-in, with its key in the environment."""
    stand_in = EndpointStandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"endpoint": stand_in}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    stand_in.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    yield stand_in
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def store(tmp_path) -> Iterator[Cache]:
    """An empty cache of the test's own."""
    made = Cache(tmp_path / "cache" / "instructions.sqlite3")
    yield made
    made.close()
