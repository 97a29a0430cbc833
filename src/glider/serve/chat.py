"""`/v1/chat/completions`."""

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from glider.serve import bodies
from glider.serve.errors import ApiError
from glider.serve.exchange import Choice, Delta, Exchange, Prompt, Token
from glider.serve.prompts import chat_prompt, room
from glider.serve.replies import Chat, described
from glider.serve.schemas import ChatRequest
from glider.serve.service import Service
from glider.serve.streaming import EventStream
from glider.serve.tools import Form, form_of, offered

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel


def routes(service: Service) -> APIRouter:
    """The route, over a service."""
    router = bodies.router()

    @router.post("/v1/chat/completions", **described(Chat, streams=True))
    async def chat(request: Request, body: ChatRequest) -> Response:
        exchange = await open_chat(service, request, body)
        head = {"id": f"chatcmpl-{exchange.request_id}", "created": int(time.time()), "model": body.model}
        if body.stream:
            return EventStream(exchange, _chunks(exchange, body, head))
        try:
            return JSONResponse(await service.until_hangup(request, _whole(exchange, body, head)))
        finally:
            exchange.close()

    return router


async def open_chat(service: Service, request: Request, body: ChatRequest) -> Exchange:
    """A conversation's exchange, begun; whoever opens it closes it. Raises `ApiError`."""
    key, target = service.target(request, body.model)
    service.check(key, body)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    if len({body.max_tokens, body.max_completion_tokens} - {None}) > 1:
        message = "wanted one number in max_tokens and max_completion_tokens, which mean the same; got two"
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    model = target.pool.model
    prompt, form = await service.runner.prepare(_read, model, body)
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    tokens = room(model, service.settings, prompt, getattr(body, field), service.packed, ("messages", field))
    exchange = Exchange(service, key, target, [prompt], body, request.state.request_id, form)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    try:
        await service.until_hangup(request, exchange.open([tokens], logprobs))
    except BaseException:
        exchange.close()
        raise
    return exchange


def _read(model: "RoutedModel", body: ChatRequest) -> tuple[Prompt, Form]:
    prompt = chat_prompt(model, body.messages, tools=offered(body))
    return prompt, form_of(model, body, prompt.ids)


async def _whole(exchange: Exchange, body: ChatRequest, head: dict[str, Any]) -> dict[str, Any]:
    async for _ in exchange.deltas():
        pass
    choices = []
    for choice in exchange.choices:
        content = [_logprob(exchange, token) for token in choice.tokens] if body.logprobs else None
        choices.append(
            {
                "index": choice.index,
                "message": _message(choice),
                "logprobs": {"content": content, "refusal": None} if body.logprobs else None,
                "finish_reason": choice.finish_reason,
                **_ids(body, choice),
            }
        )
    usage = exchange.usage
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage, "glider": exchange.glider_field}


async def _chunks(exchange: Exchange, body: ChatRequest, head: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    options = body.stream_options
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": more.pop("logprobs", None), "finish_reason": reason}
        usage = {} if options is None or not options.include_usage else {"usage": None}
        if options is not None and options.continuous_usage_stats:
            usage = {"usage": exchange.usage}
        return {**head, "choices": [{**choice, **more.pop("beside", {})}], **usage, **more}

    for choice in exchange.choices:
        yield chunk(choice.index, {"role": "assistant", "content": ""})
    left = len(exchange.choices)
    async for one in exchange.deltas():
        left -= one.finish_reason is not None
        more = _more(exchange, one, body)
        if one.finish_reason is not None and not left:
            more["glider"] = exchange.glider_field
        texts = {"content": one.text, "reasoning_content": one.reasoning}
        delta: dict[str, Any] = {name: text for name, text in texts.items() if text}
        if one.calls:
            first = len(exchange.choices[one.index].calls) - len(one.calls)
            delta["tool_calls"] = [{"index": first + n, **call.message} for n, call in enumerate(one.calls)]
        if delta or one.finish_reason or more:
            yield chunk(one.index, delta, one.finish_reason, **more)
    if options is not None and options.include_usage:
        yield {**head, "choices": [], "usage": exchange.usage}


def _message(choice: Choice) -> dict[str, Any]:
    """An answer; one that is calls alone has no content."""
    content = choice.text if choice.text or not choice.calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.calls:
        message["tool_calls"] = [call.message for call in choice.calls]
    return message


def _more(exchange: Exchange, delta: Delta, body: ChatRequest) -> dict[str, Any]:
    """What a chunk says beside its text."""
    more: dict[str, Any] = {}
    if body.logprobs and delta.token is not None:
        more["logprobs"] = {"content": [_logprob(exchange, delta.token)], "refusal": None}
    if delta.experts is not None:
        more["glider"] = {"experts": delta.experts}
    if body.return_token_ids and delta.ids:
        more["beside"] = {"token_ids": delta.ids}
    return more


def _ids(body: ChatRequest, choice: Choice) -> dict[str, Any]:
    return {"token_ids": choice.ids} if body.return_token_ids else {}


def _logprob(exchange: Exchange, token: Token) -> dict[str, Any]:
    """A token's log-probability in the form of the chat API."""
    return exchange.service.texts.scored(token.id, token.logprob, token.likeliest)
