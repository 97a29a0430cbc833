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
from glider.serve.token_texts import Offsets, prompt_offsets
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
    if body.echo and body.logprobs is not None and model.model.config.is_encoder_decoder:
        raise ApiError(400, "an encoder-decoder base gives prompts no probability", param="echo", code="invalid_value")
    service.check_choices(len(body.prompts), body.n)
    prompts = await service.runner.prepare(plain_prompts, model, body.prompts)
    fields = ("prompt", "max_tokens")
    tokens = [room(model, service.settings, one, body.max_tokens, service.packed, fields) for one in prompts]
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
        logprobs = (
            None if body.logprobs is None else _Logprobs(exchange, number, body.echo).whole(before, choice.tokens)
        )
        one = {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.finish_reason}
        choices.append({**one, "token_ids": choice.ids} if body.return_token_ids else one)
    return {**head, "choices": choices, "usage": exchange.usage, "glider": exchange.glider_field}


async def _chunks(
    exchange: Exchange, body: CompletionRequest, head: dict[str, Any], echoed: list[list[Token]] | None
) -> AsyncIterator[dict[str, Any]]:
    options = body.stream_options
    scores = [_Logprobs(exchange, choice.index // body.n, body.echo) for choice in exchange.choices]

    def chunk(choice: dict[str, Any], logprobs: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
        choice = {**choice, "logprobs": None if body.logprobs is None else logprobs}
        usage = {} if options is None or not options.include_usage else {"usage": None}
        if options is not None and options.continuous_usage_stats:
            usage = {"usage": exchange.usage}
        return {**head, "choices": [choice], **usage, **more}

    if echoed is not None:
        for choice in exchange.choices:
            number = choice.index // body.n
            one = {"index": choice.index, "text": _prompt_text(exchange, number), "finish_reason": None}
            yield chunk(one, scores[choice.index].prompt(echoed[number]))
    left = len(exchange.choices)
    async for delta in exchange.deltas():
        left -= delta.finish_reason is not None
        more: dict[str, Any] = {} if delta.experts is None else {"glider": {"experts": delta.experts}}
        if delta.finish_reason is not None and not left:
            more["glider"] = exchange.glider_field
        if not (delta.text or delta.finish_reason or more or delta.ids):
            continue
        one = {"index": delta.index, "text": delta.text, "finish_reason": delta.finish_reason}
        if body.return_token_ids:
            one["token_ids"] = delta.ids
        yield chunk(one, None if delta.token is None else scores[delta.index].answer([delta.token]), **more)
    if options is not None and options.include_usage:
        yield {**head, "choices": [], "usage": exchange.usage}


def _prompt_text(exchange: Exchange, number: int) -> str:
    prompt = exchange.request.prompts[number]  # pyright: ignore[reportAttributeAccessIssue]
    return prompt if isinstance(prompt, str) else exchange.target.pool.model.tokenizer.decode(prompt)


class _Logprobs:
    """Log-probabilities of one answer in the form of the completions API, part by part."""

    def __init__(self, exchange: Exchange, number: int, echo: bool):
        """`number` is that of the prompt, which comes before the answer with `echo`."""
        self._texts = exchange.service.texts
        self._prompt = _prompt_text(exchange, number) if echo else ""
        self._offsets = Offsets(self._texts, len(self._prompt))

    def whole(self, prompt: Sequence[Token], answer: Sequence[Token]) -> dict[str, Any]:
        """Of both."""
        before, after = self.prompt(prompt), self.answer(answer)
        return {name: before[name] + after[name] for name in before}

    def prompt(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Of the prompt."""
        return self._columns(tokens, prompt_offsets(self._texts, [token.id for token in tokens], self._prompt))

    def answer(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Of the answer's next tokens."""
        return self._columns(tokens, [self._offsets.of(token.id) for token in tokens])

    def _columns(self, tokens: Sequence[Token], offsets: list[int]) -> dict[str, Any]:
        return {
            "tokens": [self._name(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                None if token.logprob is None else {self._name(one): value for one, value in reversed(token.likeliest)}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _name(self, token: int) -> str:
        return self._texts.text(token, mark="bytes:")
