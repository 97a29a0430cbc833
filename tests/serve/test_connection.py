"""A connection takes what has arrived in steps, between which the loop has other turns."""

import asyncio
import socket
from functools import partial
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import uvicorn

from glider.serve.connection import Connection


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with how many bytes its body has."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
    await send({"type": "http.response.body", "body": b"%07d" % len(body)})


def request(chunks: int, size: int = 1) -> bytes:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%s\r\n" % (size, b"a" * size) * chunks + b"0\r\n\r\n"


async def refusal(scope: Any, receive: Any, send: Any) -> None:
    """Answers before it has read anything."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def connect(application: Any, patience: float) -> tuple[uvicorn.Server, Any, Any, Any]:
    """A server of this application, what runs it, and a connection's two ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    http: Any = partial(Connection, patience=patience)
    server = uvicorn.Server(uvicorn.Config(application, log_config=None, lifespan="off", http=http))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    return server, serving, *await asyncio.open_connection(*listener.getsockname())


async def exchange(content: bytes, answers: int) -> tuple[bytes, int]:
    """What a server answers to these bytes, sent at once, and the loop's turns until then."""
    server, serving, reader, writer = await connect(app, 30.0)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    writer.write(content)
    result = b""
    for _ in range(answers):
        await reader.readuntil(b"\r\n\r\n")
        result += await reader.readexactly(7)
    counting.cancel()
    writer.close()
    server.should_exit = True
    await serving
    return result, turns


def test_a_body_in_chunks_of_a_byte_leaves_others_their_turn() -> None:
    """A quarter of a megabyte was one step of the loop, of three seconds."""
    content = request(100_000)
    result, turns = asyncio.run(exchange(content, 1))
    assert result == b"0100000"
    assert turns > len(content) / 4096


@pytest.mark.parametrize(("chunks", "size"), [(3, 300_000), (40_000, 1), (1, 1)])
def test_requests_one_behind_the_other_are_all_answered(chunks: int, size: int) -> None:
    result, _ = asyncio.run(exchange(request(chunks, size) * 3, 3))
    assert result == b"%07d" % (chunks * size) * 3


@pytest.mark.parametrize("coding", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_the_rest_of_a_body_that_was_refused_has_its_time_too(coding: str) -> None:
    """One byte of it ended uvicorn's own limit, and the connection stayed as long as the client liked."""

    async def refused() -> bytes:
        server, serving, reader, writer = await connect(refusal, 0.2)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % coding.encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"3")
        rest = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        server.should_exit = True
        await serving
        return rest

    assert asyncio.run(refused()) == b""


def test_a_refused_body_that_ends_in_time_leaves_the_connection_to_the_next_request() -> None:
    async def twice() -> bytes:
        server, serving, reader, writer = await connect(refusal, 60.0)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"a")
        await asyncio.sleep(0)
        writer.write(b"bcGET / HTTP/1.1\r\nHost: x\r\n\r\n")
        second = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        server.should_exit = True
        await serving
        return second

    assert asyncio.run(twice()).startswith(b"HTTP/1.1 401")
