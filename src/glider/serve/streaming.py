"""Answers as server-sent events."""

import json
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from anyio import move_on_after
from starlette.responses import StreamingResponse

from glider.serve.errors import ApiError

if TYPE_CHECKING:
    from glider.serve.exchange import Exchange

log = logging.getLogger("glider.serve")
_BREAKS = {ord(one): f"\\u{ord(one):04x}" for one in "\x85\u2028\u2029"}  # ends of lines to some clients


class EventStream(StreamingResponse):
    """Chunks of an exchange, one event each, and `[DONE]`; a fault on the way is an event of its own.

    `named` events carry their `type` as their name, as those of the responses API; their fault is told twice over, as
    the API has it and as the official client raises it. The exchange is closed with the response, whether it was sent,
    broken off or never begun; a client that does not take it has as long as a body may take beyond the answer's time.
    """

    def __init__(self, exchange: "Exchange", chunks: AsyncIterator[dict[str, Any]], named: bool = False):
        super().__init__(_events(chunks, named), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._exchange = exchange

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            with move_on_after(self._exchange.left + self._exchange.service.settings.body_timeout):
                await super().__call__(scope, receive, send)
        finally:
            self._exchange.close()


async def _events(chunks: AsyncIterator[dict[str, Any]], named: bool) -> AsyncIterator[str]:
    number = 0
    try:
        async for chunk in chunks:
            number += 1
            yield _event(chunk, named)
    except Exception as fault:
        if not isinstance(fault, ApiError):
            log.exception("a stream failed")
        body = ApiError.of(fault).body
        event = {**body["error"], "type": "error", "sequence_number": number, **body} if named else body
        yield _event(event, named)
    if not named:
        yield "data: [DONE]\n\n"


def _event(value: dict[str, Any], named: bool) -> str:
    name = f"event: {value['type']}\n" if named else ""
    text = json.dumps(value, ensure_ascii=False).translate(_BREAKS)
    return f"{name}data: {text}\n\n"
