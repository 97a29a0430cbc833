"""The field `glider` in the replies of vLLM's server: what answered, as `glider serve` says it.

`glider vllm-args` names `ReplyField` as vLLM's `--middleware`. A request opens a list in its context; where its
condition is made, the resolution of each of its prompts is put there; the reply, or the last chunk of a stream, says
what the first prompt's came to: of `/v1/responses` the response in its last event, of `/v1/messages` the event that
tells why it stopped, of `/v1/chat/completions/batch` each choice its own conversation's. Replies of other routes, and
errors, pass as they are.

Some routes' requests vLLM reads without the fields that it does not know. Their field `glider` is read here, and kept
for the place where a model's name is looked up.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from glider.engines.vllm.front import Front, Resolution
from glider.engines.vllm.rows import Row

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MIDDLEWARE = "glider.engines.vllm.replies.ReplyField"
RESPONSES, MESSAGES, BATCH = "/v1/responses", "/v1/messages", "/v1/chat/completions/batch"
ROUTES = ("/v1/chat/completions", "/v1/completions", RESPONSES, MESSAGES, BATCH)
_BLIND = (MESSAGES, "/inference/v1/generate", "/cohere/v2/chat")  # where vLLM drops fields that it does not know
_ENDS = {  # of streams whose events have names: the event that has the field, and in which part of it
    RESPONSES: (b"event: response.completed", b"event: response.incomplete", b"event: response.failed"),
    MESSAGES: (b"event: message_delta",),
}
_PARTS = {RESPONSES: "response"}
_DATA, _DONE, _BREAK = b"data: ", b"data: [DONE]", b"\n\n"
_resolutions: ContextVar[dict[str, dict[str, Any]] | None] = ContextVar("glider_resolutions", default=None)
_steering: ContextVar[Any] = ContextVar("glider_steering", default=None)


def note(front: Front, resolution: Resolution, request: str) -> None:
    """Keep what a prompt's condition came to for the reply of the request that is being taken, if there is one; by the
    name that vLLM gives the prompt's own request."""
    resolutions = _resolutions.get()
    if resolutions is not None:
        resolutions.setdefault(request, routing_of(front, resolution))


def steering_beside() -> Any:
    """The field `glider` of the request that is being taken, where vLLM drops it; else None."""
    return _steering.get()


def routing_of(front: Front, resolution: Resolution) -> dict[str, Any]:
    """The field `glider` of a reply."""
    guidance = resolution.guided
    field: dict[str, Any] = {
        "verdict": resolution.verdict,
        "alpha": None if guidance is None else guidance.alpha,
        "experts": experts_of(front, resolution.row, resolution.expert),
        "scores": {} if guidance is None else guidance.scores,
        "generation": front.generation.number,
    }
    if guidance is not None and guidance.fault is not None:
        field["fault"] = guidance.fault
    return field


def experts_of(front: Front, row: Row | None, expert: str | None) -> dict[str, float] | None:
    """Experts that every token uses, by weight; empty for the base, None where each token decides."""
    if expert is not None:
        return {expert: 1.0}
    if row is None:
        return {}
    if not row.experts:
        return None
    return {front.names[one]: weight for one, weight in zip(row.experts, row.weights, strict=True)}


class ReplyField:
    """ASGI middleware: adds the field to the replies of requests that a pool answered."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))  # as a proxy that strips nothing sends it
        if scope["type"] != "http" or path not in (*ROUTES, *_BLIND):
            await self.app(scope, receive, send)
            return
        steering = None
        if path in _BLIND:
            steering, receive = await _read(receive)
        resolutions: dict[str, dict[str, Any]] = {}
        tokens = _resolutions.set(resolutions), _steering.set(steering)
        try:
            await self.app(scope, receive, _Reply(send, resolutions, path).send if path in ROUTES else send)
        finally:
            _resolutions.reset(tokens[0])
            _steering.reset(tokens[1])


async def _read(receive: Receive) -> tuple[Any, Receive]:
    """The field `glider` of a request's body, None without one, and the same request to be received again."""
    messages = [await receive()]
    while messages[-1].get("more_body", False):
        messages.append(await receive())
    try:
        content = json.loads(b"".join(message.get("body", b"") for message in messages))
    except (ValueError, RecursionError):  # what is no request, vLLM refuses
        content = None

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return content.get("glider") if isinstance(content, dict) else None, again


class _Reply:
    """One reply on its way out: whole bodies wait for their end, a stream's events for the next one."""

    def __init__(self, send: Send, resolutions: dict[str, dict[str, Any]], path: str):
        self.forward, self.resolutions, self.batch = send, resolutions, path == BATCH
        self.ends, self.part = _ENDS.get(path, ()), _PARTS.get(path)
        self.start: Message | None = None
        self.kind, self.parts = "", bytearray()

    async def send(self, message: Message) -> None:
        """Take a message of the application's."""
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message["headers"]}
            kind = headers.get(b"content-type", b"").split(b";")[0].strip()
            plain = message["status"] == 200 and b"content-encoding" not in headers
            self.kind = {b"application/json": "whole", b"text/event-stream": "stream"}.get(kind, "") if plain else ""
            if self.kind == "whole":
                self.start = message
            else:
                await self.forward(message)
        elif message["type"] != "http.response.body" or not self.kind:
            await self.forward(message)
        elif self.kind == "whole":
            await self._whole(message)
        elif self.ends:
            await self._named(message)
        else:
            await self._stream(message)

    async def _whole(self, message: Message) -> None:
        self.parts += message.get("body", b"")
        if message.get("more_body", False):
            return
        assert self.start is not None
        body = self._with_field(bytes(self.parts))
        headers = [(name, value) for name, value in self.start["headers"] if name.lower() != b"content-length"]
        await self.forward({**self.start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self.forward({**message, "body": body})

    async def _stream(self, message: Message) -> None:
        """Keep back an answer's end, and what follows it, until other choices' chunks or the stream's end follow."""
        self.parts += message.get("body", b"")
        *events, rest = bytes(self.parts).split(_BREAK)
        more = message.get("more_body", False)
        chunks = [place for place, event in enumerate(events) if _choices(event)]
        ends = bool(chunks) and all(choice.get("finish_reason") for choice in _choices(events[chunks[-1]]))
        last = chunks[-1] if ends else len(events)
        if any(event.startswith(_DONE) for event in events) or not more:
            if last < len(events):
                events[last] = _DATA + self._with_field(events[last][len(_DATA) :])
            ready, self.parts = _joined(events) + rest, bytearray()
        else:
            ready, self.parts = _joined(events[:last]), bytearray(_joined(events[last:]) + rest)
        if ready or not more:
            await self.forward({**message, "body": ready})

    async def _named(self, message: Message) -> None:
        """Pass on each event when it is whole."""
        self.parts += message.get("body", b"")
        *events, rest = bytes(self.parts).split(_BREAK)
        more = message.get("more_body", False)
        ready, self.parts = _joined([self._of_named(event) for event in events]), bytearray(rest)
        if ready or not more:
            await self.forward({**message, "body": ready if more else ready + rest})

    def _of_named(self, event: bytes) -> bytes:
        name, data, body = event.partition(b"\n" + _DATA)
        if not data or name not in self.ends:
            return event
        return name + data + self._with_field(body, self.part)

    def _with_field(self, body: bytes, part: str | None = None) -> bytes:
        if not self.resolutions:
            return body
        reply = json.loads(body)
        if self.batch:
            for choice in reply["choices"]:
                choice["glider"] = self.resolutions[f"{reply['id']}_{choice['index']}"]
        else:
            (reply if part is None else reply[part])["glider"] = next(iter(self.resolutions.values()))
        return json.dumps(reply, ensure_ascii=False, separators=(",", ":")).encode()


def _choices(event: bytes) -> list[dict[str, Any]]:
    """The choices that an event of a stream holds pieces of."""
    return json.loads(event[len(_DATA) :]).get("choices") or [] if event.startswith(_DATA + b"{") else []


def _joined(events: list[bytes]) -> bytes:
    return b"".join(event + _BREAK for event in events)
