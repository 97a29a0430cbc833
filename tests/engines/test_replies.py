"""The field `glider` in replies that pass through the middleware, behind a real ASGI application."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient

from glider.engines.vllm import replies

ROUTING = {"verdict": "fits", "alpha": 103.0, "experts": {"paws": 1.0}, "scores": {}, "generation": 1}
CHAT = "/v1/chat/completions"


def piece(text: str, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]}


def served(parts: list[bytes], resolved: bool = True, status: int = 200, root: str = "") -> TestClient:
    """A server that streams these bytes, or gives a reply or an error, and resolves each request's condition first."""
    app = FastAPI()
    app.root_path = root  # as vLLM does

    async def body() -> AsyncIterator[bytes]:
        for number, part in enumerate(parts):
            if resolved and not number:  # in the task of the stream, as vLLM does
                resolutions = replies._resolutions.get()
                assert resolutions is not None
                resolutions.update({"1_0": ROUTING, "1_1": {"verdict": "stranger"}})
            yield part

    async def reply() -> Any:
        if parts:
            return StreamingResponse(body(), media_type="text/event-stream")
        resolutions = replies._resolutions.get()
        if resolved and resolutions is not None:
            resolutions["1_0"] = ROUTING
        return JSONResponse({"id": "1", "text": "é"}, status)

    app.post(CHAT)(reply)
    app.post(replies.RESPONSES)(reply)
    app.post(replies.MESSAGES)(reply)
    app.post("/v1/other")(reply)
    app.add_middleware(replies.ReplyField)
    return TestClient(app)


def events(parts: list[Any], done: bool = True) -> bytes:
    ended = b"data: [DONE]\n\n" if done else b""
    return b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in parts) + ended


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_a_whole_reply_has_the_field_and_its_length() -> None:
    reply = served([]).post(CHAT)
    assert reply.json() == {"id": "1", "text": "é", "glider": ROUTING}
    assert int(reply.headers["content-length"]) == len(reply.content)


def test_behind_a_prefix_that_no_proxy_strips_replies_have_it_too() -> None:
    """They had none (`--root-path`)."""
    client = served([], root="/behind")
    assert client.post(f"/behind{CHAT}").json()["glider"] == ROUTING
    assert client.post(CHAT).json()["glider"] == ROUTING


@pytest.mark.parametrize("status", [400, 500])
def test_errors_pass_as_they_are(status: int) -> None:
    reply = served([], status=status).post(CHAT)
    assert reply.status_code == status and reply.json() == {"id": "1", "text": "é"}


def test_other_routes_and_requests_of_no_pool_pass_as_they_are() -> None:
    assert served([]).post("/v1/other").json() == {"id": "1", "text": "é"}
    assert served([], resolved=False).post(CHAT).json() == {"id": "1", "text": "é"}
    stream = events([piece("a"), piece("", "stop")])
    assert served([stream], resolved=False).post(CHAT).content == stream


@pytest.mark.parametrize("size", [1, 7, 40, 10_000])
@pytest.mark.parametrize("more", [[], [{"choices": [], "usage": {"total_tokens": 3}}]])
def test_a_streams_last_chunk_has_the_field_however_it_is_cut(size: int, more: list[Any]) -> None:
    pieces = [piece("a"), piece("b"), piece("", "stop"), *more]
    whole = events(pieces)
    received = read(served([whole[i : i + size] for i in range(0, len(whole), size)]).post(CHAT).text)
    assert received == [*pieces[:2], {**pieces[2], "glider": ROUTING}, *pieces[3:]]


def test_the_last_of_several_answers_ends_has_the_field() -> None:
    pieces = [piece("a"), piece("b", index=1), piece("", "stop"), piece("c", index=1), piece("", "length", 1)]
    received = read(served([events([one], done=False) for one in pieces] + [b"data: [DONE]\n\n"]).post(CHAT).text)
    assert received == [*pieces[:4], {**pieces[4], "glider": ROUTING}]


def test_a_stream_that_ends_without_done_loses_nothing() -> None:
    pieces = [piece("a"), piece("", "stop")]
    text = served([events(pieces, done=False) + b"data: {"]).post(CHAT).text
    assert text.endswith("data: {") and read(text.removesuffix("data: {"))[-1]["glider"] == ROUTING


def named(kind: str, **more: Any) -> bytes:
    return f"event: response.{kind}\ndata: {json.dumps({'type': f'response.{kind}', **more})}\n\n".encode()


@pytest.mark.parametrize("size", [1, 7, 40, 10_000])
@pytest.mark.parametrize("kind", ["completed", "incomplete"])
def test_the_response_in_a_streams_last_event_has_the_field(size: int, kind: str) -> None:
    """Replies of `/v1/responses` had none."""
    first = named("created", response={"id": "1"}) + named("output_text.delta", delta="completed\n")
    whole = first + named(kind, response={"id": "1"}, sequence_number=2)
    parts = [whole[i : i + size] for i in range(0, len(whole), size)]
    content = served(parts).post(replies.RESPONSES).content
    assert content.startswith(first + f"event: response.{kind}\n".encode())
    assert read(content.decode())[-1]["response"] == {"id": "1", "glider": ROUTING}
    assert read(content.decode())[-1]["sequence_number"] == 2
    assert served(parts, resolved=False).post(replies.RESPONSES).content == whole


@pytest.mark.parametrize("size", [1, 7, 40, 10_000])
def test_the_event_that_tells_why_a_message_stopped_has_the_field(size: int) -> None:
    """Replies of `/v1/messages` had none."""

    def event(kind: str, **more: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()

    first = event("message_start", message={"id": "1"}) + event("content_block_delta", delta={"text": "message_delta"})
    delta, last = {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}, event("message_stop")
    whole = first + event("message_delta", **delta) + last
    parts = [whole[i : i + size] for i in range(0, len(whole), size)]
    content = served(parts).post(replies.MESSAGES).content
    assert content.startswith(first + b"event: message_delta\n") and content.endswith(b"\n\n" + last)
    assert read(content.decode())[-2] == {"type": "message_delta", **delta, "glider": ROUTING}
    assert served(parts, resolved=False).post(replies.MESSAGES).content == whole


@pytest.mark.parametrize("route", [replies.RESPONSES, replies.MESSAGES])
def test_a_whole_response_has_the_field(route: str) -> None:
    assert served([]).post(route).json() == {"id": "1", "text": "é", "glider": ROUTING}


def test_each_choice_of_a_batch_has_its_own_conversations() -> None:
    """In the order of the conversations, whichever of them was decided first."""
    app, stranger = FastAPI(), {"verdict": "stranger"}

    @app.post(replies.BATCH)
    async def reply() -> Any:
        resolutions = replies._resolutions.get()
        assert resolutions is not None
        resolutions.update({"a_1": stranger, "a_0": ROUTING})
        return {"id": "a", "choices": [{"index": 0}, {"index": 1}]}

    app.add_middleware(replies.ReplyField)
    choices = [{"index": 0, "glider": ROUTING}, {"index": 1, "glider": stranger}]
    assert TestClient(app).post(replies.BATCH).json() == {"id": "a", "choices": choices}


def test_no_token_waits_for_the_next_one() -> None:
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in (piece("a"), piece("b")):
            await send({"type": "http.response.body", "body": events([part], done=False), "more_body": True})
            assert sent[-1] == events([part], done=False)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    import asyncio

    asyncio.run(replies.ReplyField(app)({"type": "http", "path": CHAT}, None, send))  # pyright: ignore
    assert b"".join(sent) == events([piece("a"), piece("b")], done=False)


@pytest.mark.parametrize(
    ("body", "steering"),
    [
        (b'{"glider": {"verdict": "base"}, "messages": []}', {"verdict": "base"}),
        (b'{"messages": [{"content": "glider"}]}', None),
        (b'{"\\u0067lider": 7}', 7),
        (b'["glider"]', None),
        (b'{"glider": ', None),
        (b"[" * 100_000, None),
        (b"\xff", None),
        (b"", None),
    ],
)
@pytest.mark.parametrize("size", [1, 40, 10_000_000])
def test_the_field_of_a_request_is_kept_where_vllm_drops_it(body: bytes, steering: Any, size: int) -> None:
    """Of `/v1/messages` and others it was dropped without a word; the request is passed on as it came."""
    if len(body) > 100 and size < 100:
        pytest.skip("as the whole of it")
    import asyncio

    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    coming = [{"type": "http.request", "body": part, "more_body": True} for part in parts[:-1]]
    coming += [{"type": "http.request", "body": parts[-1], "more_body": False}, {"type": "http.disconnect"}]
    got: list[Any] = []

    async def receive() -> Any:
        return coming.pop(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.append(await asyncio.create_task(steered()))  # in a task of its own, as vLLM looks a name up
        message = await receive()
        received = [message]
        while message["type"] == "http.request":
            message = await receive()
            received.append(message)
        got.append(received)

    async def steered() -> Any:
        return replies.steering_beside()

    expected = list(coming)
    for path in (replies.MESSAGES, "/inference/v1/generate"):
        coming[:], got[:] = expected, []
        asyncio.run(replies.ReplyField(app)({"type": "http", "path": path}, receive, None))  # pyright: ignore
        assert got == [steering, expected]
        assert replies.steering_beside() is None


def test_that_a_client_left_is_passed_on() -> None:
    import asyncio

    coming = [{"type": "http.request", "body": b'{"glider": 1}', "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return coming.pop(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert [(await receive())["type"] for _ in range(2)] == ["http.request", "http.disconnect"]

    asyncio.run(replies.ReplyField(app)({"type": "http", "path": replies.MESSAGES}, receive, None))  # pyright: ignore
    assert not coming
