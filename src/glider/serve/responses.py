"""`/v1/responses`: text and calls in, text and calls out. Nothing is stored."""

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from glider.serve import bodies, replies
from glider.serve.chat import open_chat
from glider.serve.errors import ApiError
from glider.serve.exchange import Exchange
from glider.serve.response_output import Output
from glider.serve.response_schemas import ResponsesRequest
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
            raise _in_words_of_responses(fault) from fault
        answer = _Answer(exchange, body)
        if body.stream:
            return EventStream(exchange, answer.events(), named=True)
        try:
            return JSONResponse(await service.until_hangup(request, answer.whole()))
        finally:
            exchange.close()

    return router


def _in_words_of_responses(fault: ApiError) -> ApiError:
    param = fault.param
    if param is not None:
        param = _PARAMS.get(param, param).replace(".function.", ".")
    return ApiError(fault.status, fault.message, param=param, code=fault.code, retry=fault.retry)


class _Answer:
    """An exchange in the form of the responses API."""

    def __init__(self, exchange: Exchange, body: ResponsesRequest):
        self._exchange, self._body, self._created = exchange, body, int(time.time())
        self._output = Output(exchange.request_id, exchange.service.texts if body.include else None)

    async def whole(self) -> dict[str, Any]:
        """The response, once it has ended."""
        async for _ in self._events():
            pass
        return self._response(self._status)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """What a stream tells, numbered through."""
        number = 0
        async for event in self._events():
            yield {**event, "sequence_number": number}
            number += 1

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        begun = self._response("in_progress")
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}
        async for delta in self._exchange.deltas():
            for event in self._output.add(delta):
                yield event
        for event in self._output.end(self._status):
            yield event
        yield {"type": f"response.{self._status}", "response": self._response(self._status)}

    @property
    def _status(self) -> str:
        return "incomplete" if self._exchange.choices[0].finish_reason == "length" else "completed"

    def _response(self, status: str) -> dict[str, Any]:
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
            "output": list(self._output.items) if ended else [],
            "parallel_tool_calls": bool(body.tools) and body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": body.prompt_cache_key,
            "safety_identifier": body.safety_identifier,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": self._format},
            "tool_choice": self._choice,
            "tools": [{"strict": False, **tool.model_dump(exclude_none=True)} for tool in body.tools],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": self._usage if ended else None,
        }
        return {**response, "glider": self._exchange.glider_field} if ended else response

    @property
    def _choice(self) -> Any:
        choice = self._body.tool_choice
        if choice is None:
            return "auto" if self._body.tools else "none"
        return choice if isinstance(choice, str) else choice.model_dump()

    @property
    def _format(self) -> dict[str, Any]:
        form = None if self._body.text is None else self._body.text.format
        return {"type": "text"} if form is None else form.model_dump(by_alias=True)

    @property
    def _usage(self) -> dict[str, Any]:
        usage, reuse = self._exchange.usage, self._exchange.reuse
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": reuse.cached, "cache_write_tokens": reuse.stored},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self._output.reasoning_tokens},
            "total_tokens": usage["total_tokens"],
        }
