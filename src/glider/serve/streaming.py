"""Answers as server-sent events."""

import json
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

from glider.serve.errors import ApiError

if TYPE_CHECKING:
    from glider.serve.exchange import Exchange

log = logging.getLogger("glider.serve")


class EventStream(StreamingResponse):
    """Chunks of an exchange, one event each, and `[DONE]`; a fault on the way is an event of its own.

    The exchange is closed with the response, whether it was sent, broken off or never begun.
    """

    def __init__(self, exchange: "Exchange", chunks: AsyncIterator[dict[str, Any]]):
        super().__init__(_events(chunks), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._exchange = exchange

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exchange.close()


async def _events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield _event(chunk)
    except Exception as fault:
        if not isinstance(fault, ApiError):
            log.exception("a stream failed")
        yield _event(ApiError.of(fault).body)
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
