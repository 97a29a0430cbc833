"""`/v1/completions`: texts or tokens, continued as they stand."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from glider.serve import bodies
from glider.serve.errors import ApiError
from glider.serve.exchange import Exchange, Token
from glider.serve.formats import format_grammar
from glider.serve.prompt_scores import prompt_tokens
from glider.serve.prompts import plain_prompts, room
from glider.serve.replies import Completion, described
from glider.serve.schemas import CompletionRequest
from glider.serve.service import Service
from glider.serve.streaming import EventStream
from glider.serve.tools import Form


def routes(service: Service) -> APIRouter:
    """The route, over a service."""
    router = bodies.router()

    @router.post("/v1/completions", **described(Completion, streams=True))
    async def complete(request: Request, body: CompletionRequest) -> Response:
        exchange = await _open(service, request, body)
        try:
            echoed = await _echoed(exchange, body) if body.echo else None
        except BaseException:
            exchange.close()
            raise
        head = {"id": f"cmpl-{exchange.request_id}", "object": "text_completion", "created": int(time.time())}
        head |= {"model": body.model}
        if body.stream:
            return EventStream(exchange, _chunks(exchange, body, head, echoed))
        try:
            return JSONResponse(await service.until_hangup(request, _whole(exchange, body, head, echoed)))
        finally:
            exchange.close()

    return router


async def _open(service: Service, request: Request, body: CompletionRequest) -> Exchange:
    key, target = service.target(request, body.model)
    service.check(key, body)
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens of 0 needs echo: true", param="max_tokens", code="invalid_value")
    model = target.pool.model
    prompts = await service.runner.prepare(plain_prompts, model, body.prompts)
    tokens = [
        room(model, service.settings, prompt, body.max_tokens, "max_tokens", service.packed) if body.max_tokens else 0
        for prompt in prompts
    ]
    exchange = Exchange(service, key, target, prompts, body, request.state.request_id, Form(format_grammar(body)))
    try:
        await service.until_hangup(request, exchange.open(tokens, body.logprobs))
    except BaseException:
        exchange.close()
        raise
    return exchange


async def _echoed(exchange: Exchange, body: CompletionRequest) -> list[list[Token]]:
    """Each prompt's tokens, to be told before its answers."""
    model, generation = exchange.target.pool.model, exchange.generation
    return [
        await exchange.service.runner.prepare(prompt_tokens, model, generation, guide.condition, prompt, body.logprobs)
        for prompt, guide in zip(exchange.prompts, exchange.guided, strict=True)
    ]


async def _whole(
    exchange: Exchange, body: CompletionRequest, head: dict[str, Any], echoed: list[list[Token]] | None
) -> dict[str, Any]:
    async for _ in exchange.deltas():
        pass
    choices = []
    for choice in exchange.choices:
        number = choice.index // body.n
        before = [] if echoed is None else echoed[number]
        text = ("" if echoed is None else _prompt_text(exchange, number)) + choice.text
        logprobs = None if body.logprobs is None else _logprobs(exchange, [*before, *choice.tokens], 0)
        one = {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.finish_reason}
        choices.append({**one, "token_ids": choice.ids} if body.return_token_ids else one)
    return {**head, "choices": choices, "usage": exchange.usage, "glider": exchange.glider_field}


async def _chunks(
    exchange: Exchange, body: CompletionRequest, head: dict[str, Any], echoed: list[list[Token]] | None
) -> AsyncIterator[dict[str, Any]]:
    options = body.stream_options
    lengths = [0] * len(exchange.choices)  # of the text that was told

    def chunk(index: int, text: str, tokens: Sequence[Token], reason: str | None, **more: Any) -> dict[str, Any]:
        logprobs = None if body.logprobs is None or not tokens else _logprobs(exchange, tokens, lengths[index])
        lengths[index] += sum(len(token.text) for token in tokens)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        if body.return_token_ids and not more.pop("is_prompt", False):
            choice["token_ids"] = [token.id for token in tokens]
        usage = {} if options is None or not options.include_usage else {"usage": None}
        if options is not None and options.continuous_usage_stats:
            usage = {"usage": exchange.usage}
        return {**head, "choices": [choice], **usage, **more}

    if echoed is not None:
        for choice in exchange.choices:
            number = choice.index // body.n
            yield chunk(choice.index, _prompt_text(exchange, number), echoed[number], None, is_prompt=True)
    left = len(exchange.choices)
    async for delta in exchange.deltas():
        left -= delta.finish_reason is not None
        more: dict[str, Any] = {} if delta.experts is None else {"glider": {"experts": delta.experts}}
        if delta.finish_reason is not None and not left:
            more["glider"] = exchange.glider_field
        tokens = [] if delta.token is None else [delta.token]
        if delta.text or delta.finish_reason or more or tokens:
            yield chunk(delta.index, delta.text, tokens, delta.finish_reason, **more)
    if options is not None and options.include_usage:
        yield {**head, "choices": [], "usage": exchange.usage}


def _prompt_text(exchange: Exchange, number: int) -> str:
    prompt = exchange.request.prompts[number]  # pyright: ignore[reportAttributeAccessIssue]
    return prompt if isinstance(prompt, str) else exchange.target.pool.model.tokenizer.decode(prompt)


def _logprobs(exchange: Exchange, tokens: Sequence[Token], start: int) -> dict[str, Any]:
    """Log-probabilities in the form of the completions API."""
    decode = exchange.target.pool.model.tokenizer.decode
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {decode([other]): value for other, value in reversed(token.likeliest)}
            if token.logprob is not None
            else None
            for token in tokens
        ],
        "text_offset": offsets,
    }
