"""`/v1/responses`: text in, text out. Nothing is stored."""

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from glider.serve import bodies, replies
from glider.serve.chat import open_chat
from glider.serve.errors import ApiError
from glider.serve.exchange import Exchange
from glider.serve.schemas import ResponsesRequest
from glider.serve.service import Service
from glider.serve.streaming import EventStream

_PARAMS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
}  # what the chat API calls them


def routes(service: Service) -> APIRouter:
    """The route, over a service."""
    router = bodies.router()

    @router.post("/v1/responses", **replies.described(replies.Response, streams=True))
    async def respond(request: Request, body: ResponsesRequest) -> Response:
        try:
            exchange = await open_chat(service, request, body.chat)
        except ApiError as fault:
            fault.param = _PARAMS.get(fault.param or "", fault.param)
            raise
        answer = _Answer(exchange, body)
        if body.stream:
            return EventStream(exchange, answer.events(), named=True)
        try:
            return JSONResponse(await service.until_hangup(request, answer.whole()))
        finally:
            exchange.close()

    return router


class _Answer:
    """An exchange in the form of the responses API."""

    def __init__(self, exchange: Exchange, body: ResponsesRequest):
        self._exchange, self._body, self._created = exchange, body, int(time.time())
        self._item_id = f"msg_{exchange.request_id}"

    async def whole(self) -> dict[str, Any]:
        """The response, once it has ended."""
        async for _ in self._exchange.deltas():
            pass
        return self._response(self._status, [self._item(self._status, [self._part()])])

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """What a stream tells, numbered through."""
        number = 0
        async for event in self._events():
            yield {**event, "sequence_number": number}
            number += 1

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        begun = self._response("in_progress", [])
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}
        item = self._item("in_progress", [])
        yield {"type": "response.output_item.added", "output_index": 0, "item": item}
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        empty = {"type": "output_text", "text": "", "annotations": []}
        yield {"type": "response.content_part.added", **place, "part": empty}
        async for delta in self._exchange.deltas():
            if delta.text:
                yield {"type": "response.output_text.delta", **place, "delta": delta.text, "logprobs": []}
        part, status = self._part(), self._status
        yield {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []}
        yield {"type": "response.content_part.done", **place, "part": part}
        item = self._item(status, [part])
        yield {"type": "response.output_item.done", "output_index": 0, "item": item}
        yield {"type": f"response.{status}", "response": self._response(status, [item])}

    @property
    def _status(self) -> str:
        return "incomplete" if self._exchange.choices[0].finish_reason == "length" else "completed"

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self._exchange.choices[0].text, "annotations": []}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        body, ended = self._body, status != "in_progress"
        response: dict[str, Any] = {
            "id": f"resp_{self._exchange.request_id}",
            "object": "response",
            "created_at": self._created,
            "model": body.model,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": self._format},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": self._usage if ended else None,
        }
        return {**response, "glider": self._exchange.glider_field} if ended else response

    @property
    def _format(self) -> dict[str, Any]:
        form = None if self._body.text is None else self._body.text.format
        return {"type": "text"} if form is None else form.model_dump(by_alias=True)

    @property
    def _usage(self) -> dict[str, Any]:
        usage = self._exchange.usage
        return {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
