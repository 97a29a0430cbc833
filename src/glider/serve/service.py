"""What the routes share: pools, the engine, limits, keys, metrics, the log."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request

from glider.data.rows import read_pairs
from glider.errors import ConfigError, EndpointError
from glider.experts.card import EmbedderIdentity
from glider.inference.queries import Query
from glider.instructions.embedders import load_for
from glider.instructions.prompts import Pair
from glider.printable import dump_json, printable
from glider.serve.errors import ApiError
from glider.serve.grammars import Grammars
from glider.serve.keys import Key, Keys, Right
from glider.serve.lanes import LANE
from glider.serve.metrics import Metrics
from glider.serve.places import RETRY, Places
from glider.serve.pools import Pools, ServedPool, Target
from glider.serve.runner import Runner
from glider.serve.schemas import MAX_EXAMPLES, ChatRequest, Sampling, Steering
from glider.serve.settings import ServeSettings
from glider.serve.steering import Way, guided
from glider.serve.token_texts import TokenTexts
from glider.serve.tracing import Tracing, is_traced

if TYPE_CHECKING:
    from glider.serve.exchange import Exchange

Result = TypeVar("Result")
log = logging.getLogger("glider.serve")
access = logging.getLogger("glider.serve.access")
_LOOK = 0.1  # seconds between looks whether a client has hung up


class Service:
    """A server's state. Made in the main thread, started in its event loop."""

    def __init__(self, pools: Pools, settings: ServeSettings, tracing: Tracing | None = None):
        self.pools, self.settings = pools, settings
        self.examples = _examples(settings.examples)
        self.keys = Keys.read(settings.api_key_file, list(pools.pools))
        self.runner = Runner(pools.first.model, settings)
        self.grammars = Grammars(pools.first.model)
        self.texts = TokenTexts(pools.tokenizer)
        self.places = Places(settings.max_requests, settings.max_queue, settings.max_streams)
        self.metrics = Metrics()
        self.tracing = (tracing or Tracing()) if is_traced(settings.otel, os.environ) else None
        self.started = time.time()
        self.ready = False

    def warm(self) -> None:
        """Ask every pool something, so that what is loaded at the first question is loaded before it."""
        self.texts = TokenTexts(self.pools.tokenizer, self.grammars.spelling)
        for pool in self.pools.pools.values():
            ids = pool.model.prompt.prompt_ids(pool.model.tokenizer, "Hello")
            guided(pool.model, pool.generation, Way("routed"), Query("Hello"), ids, Steering())
            if (identity := _embedder(pool)) is not None:  # which the cache may have spared that question
                try:
                    load_for(identity).embed(["Hello"])
                except EndpointError as fault:
                    log.warning("the embedder of %s does not answer: %s", pool.name, fault)

    def query(self, text: str, steering: Steering) -> Query:
        """What a request asks, with the server's examples where it brings none."""
        return Query(text, steering.description, tuple(steering.examples) or self.examples)

    def start(self) -> None:
        """Take up the engine's events; called in the event loop."""
        self.runner.start()
        self.ready = True

    def drain(self) -> None:
        """Let nobody in any more."""
        self.places.closed = True

    def close(self) -> None:
        """Stop, and give the pools back."""
        self.drain()
        self.grammars.close()
        self.runner.close()
        if self.tracing is not None:
            self.tracing.close()

    def key(self, request: Request, right: Right) -> Key:
        """Whoever asks; raises an `ApiError` (401, 403) for a wrong key, or one without this right."""
        key = self.keys.of(request.headers.get("authorization"))
        key.require(right)
        LANE.set(key.name)
        return key

    def target(self, request: Request, name: str) -> tuple[Key, Target]:
        """Whoever asks, and the model that is asked for."""
        key = self.key(request, "ask")
        self.admit()
        return key, self.pools.target(name, key.pools)

    def admit(self) -> None:
        """Raise a 429 `ApiError` where as many requests are being prepared as may be answered and wait: what comes
        before a place in the queue is bounded like it. No key keeps the others out."""
        if not self.runner.admits(LANE.get(), self.settings.max_requests + self.settings.max_queue):
            message = f"{self.runner.preparing} requests are being prepared"
            raise ApiError(429, message, code="queue_full", retry=RETRY)

    @property
    def packed(self) -> bool:
        """Whether requests share passes, on a cache of bounded size."""
        return self.runner.engine.can.join

    def check(self, key: Key, body: Sampling) -> None:
        """Raise an `ApiError` for what a request may not ask, or asks against itself."""
        if body.glider.trace:
            key.require("trace")
        if body.stream_options is not None and not body.stream:
            message = "stream_options needs stream: true"
            raise ApiError(400, message, param="stream_options", code="invalid_value")

    def check_choices(self, prompts: int, n: int) -> int:
        """How many answers a request asks for; raises `ApiError` for too many."""
        if (count := prompts * n) > self.settings.max_choices:
            message = f"{count} answers of one request, where {self.settings.max_choices} is the most"
            raise ApiError(400, message, param="n" if n > 1 else "prompt", code="invalid_value")
        return count

    async def until_hangup(self, request: Request, work: Awaitable[Result]) -> Result:
        """The result of some work, which ends with the client's connection."""
        task = asyncio.ensure_future(work)
        try:
            while True:
                done, _ = await asyncio.wait([task], timeout=_LOOK)
                if done:
                    return task.result()
                if await request.is_disconnected():
                    raise ApiError(499, "the client hung up", code="client_closed_request")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    def annotate_span(self, exchange: "Exchange") -> None:
        """Tell a request's span what is known of it, where there are spans."""
        if self.tracing is not None:
            self.tracing.annotate(exchange)

    def ended(self, exchange: "Exchange", seconds: float) -> None:
        """Count a request that had begun, and write it into the log: without prompts unless that was asked for."""
        if exchange.begun:
            self.metrics.ended(exchange, seconds)
        line: dict[str, Any] = {
            "request": exchange.request_id,
            "key": exchange.key.name,
            "user": None if exchange.request.user is None else printable(exchange.request.user),
            "model": exchange.target.name,
            "verdict": exchange.verdict_label,
            "prompt_tokens": exchange.prompt_tokens,
            "completion_tokens": exchange.completion_tokens,
            "finish": [choice.finish_reason or "abort" for choice in exchange.choices],
            "seconds": round(seconds, 4),
        }
        if isinstance(exchange.request, ChatRequest) and exchange.request.safety_identifier is not None:
            line["safety_identifier"] = printable(exchange.request.safety_identifier)
        if self.settings.log_prompts:
            line["prompts"] = [prompt.text for prompt in exchange.prompts]
            line["answers"] = [choice.text for choice in exchange.choices]
        access.info(dump_json(line, indent=None))


def _embedder(pool: ServedPool) -> EmbedderIdentity | None:
    """The embedder that every query of a pool needs, if any."""
    prepared = pool.generation.prepared
    terms = (prepared.global_term, None if prepared.judge is None else prepared.judge.term)
    needs = {need for term in terms if term is not None for need in term.scores.needs}
    if prepared.judge is not None and prepared.judge.kinship is not None:
        needs.add("instructions")
    return pool.model.pool.index.embedder if needs & {"instructions", "inputs"} else None


def _examples(path: str | None) -> tuple[Pair, ...]:
    pairs = () if path is None else read_pairs(path)
    if len(pairs) > MAX_EXAMPLES:
        raise ConfigError(f"up to {MAX_EXAMPLES} examples in {path}", str(len(pairs)), "Leave some out.")
    return pairs
