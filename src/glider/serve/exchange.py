"""One request in progress: its places, its condition, its answers as they are written."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import fail_after

from glider.inference.conversation import Turn
from glider.inference.engine import Ended, Event, Failed, NewToken, Reuse
from glider.inference.streaming import Decoder
from glider.serve.call_readers import Call, CallReader, Read
from glider.serve.errors import ApiError, shutting_down
from glider.serve.formats import format_error, require_json
from glider.serve.hidden import without_directories
from glider.serve.pools import Target
from glider.serve.sampling import Draw
from glider.serve.schemas import Sampling
from glider.serve.steering import Guided, guided
from glider.serve.token_trace import TokenTrace, TokenWeights
from glider.serve.tools import Form

if TYPE_CHECKING:
    from glider.serve.keys import Key
    from glider.serve.service import Service

Result = TypeVar("Result")


@dataclass(frozen=True)
class Prompt:
    """A prompt in tokens, with the text that decides for the global term; `turns` (role, text) of a conversation."""

    ids: list[int]
    text: str
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Token:
    """A token of an answer, with its log-probability if requested."""

    id: int
    logprob: float | None
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Delta:
    """An addition to an answer: text, its token, and at the end why it ended."""

    index: int
    text: str = ""
    calls: tuple[Call, ...] = ()
    reasoning: str = ""
    token: Token | None = None
    end: int | None = None  # the token that ended it, which is no part of the text
    finish_reason: str | None = None
    experts: dict[str, float] | None = None

    @property
    def ids(self) -> list[int]:
        """The token that it comes of, if any."""
        if self.token is not None:
            return [self.token.id]
        return [] if self.end is None else [self.end]


@dataclass
class Choice:
    """An answer so far."""

    index: int
    decoder: Decoder
    weights: TokenWeights | None
    trace: TokenTrace | None
    reader: CallReader | None = None
    calls: list[Call] = field(default_factory=list)
    reasoning: str = ""
    ids: list[int] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    last: float | None = None  # when its last token came

    def read(self, text: str, last: bool) -> Read:
        """What some more text is, where the answer may call tools."""
        if self.reader is None:
            return Read(text)
        read = self.reader.feed(text)
        if not last:
            return read
        rest = self.reader.rest()
        return Read(read.text + rest.text, (*read.calls, *rest.calls), read.reasoning + rest.reasoning)

    def take(self, delta: Delta) -> None:
        self.text += delta.text
        self.calls += delta.calls
        self.reasoning += delta.reasoning
        if delta.token is not None:
            self.tokens.append(delta.token)


class Exchange:
    """The answers to one HTTP request: `n` for each of its prompts, numbered through."""

    def __init__(
        self,
        service: "Service",
        key: "Key",
        target: Target,
        prompts: Sequence[Prompt],
        request: Sampling,
        request_id: str,
        form: Form | None = None,
    ):
        self.service, self.key, self.target, self.request = service, key, target, request
        self.form = Form() if form is None else form
        self.prompts, self.request_id = list(prompts), request_id
        self.began = time.monotonic()
        self.choices: list[Choice] = []
        self.guided: list[Guided] = []  # by prompt
        self.generation: Any = None
        self.completion_tokens = 0
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._names: dict[str, int] = {}  # requests that the engine has, by name
        self._reuse: dict[int, Reuse] = {}  # of each answer that has begun
        self._places: int | None = None
        self.begun = False  # all answers are with the engine; before that it may be refused
        self._closed = False

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.ids) for prompt in self.prompts)

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens so far."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return {**usage, "prompt_tokens_details": {"cached_tokens": self.reuse.cached}}

    @property
    def reuse(self) -> Reuse:
        """Of each prompt once: tokens that none of its answers computed, and those that any left in the cache."""
        n, nothing = self.request.n, Reuse()
        firsts = range(0, n * len(self.prompts), n)
        rows = [[self._reuse.get(first + i, nothing) for i in range(n)] for first in firsts]
        return Reuse(
            sum(min(one.cached for one in row) for row in rows), sum(max(one.stored for one in row) for row in rows)
        )

    @property
    def verdict_label(self) -> str:
        """The verdict of the first prompt, or how its model is answered; `failed` of a request that was refused."""
        if not self.guided:
            return "failed"
        return self.guided[0].verdict or ("none" if self.target.way.kind == "routed" else self.target.way.kind)

    async def open(self, tokens: Sequence[int], logprobs: int | None) -> None:
        """Wait for places and begin; `tokens` is the longest answer to each prompt. Raises `ApiError`."""
        request, service = self.request, self.service
        count = service.check_choices(len(self.prompts), request.n)
        service.places.check(self.key.name, self.key.max_streams)
        grammar = self.form.grammar
        matcher = None if grammar is None else await self._in_time(service.grammars.matcher(grammar))
        draw = await service.runner.prepare(self._prepare, logprobs, matcher)
        waited = time.monotonic()
        self._places = await self._in_time(service.places.enter(count, self.key.name, self.key.max_streams))
        waited = time.monotonic() - waited
        await service.runner.prepare(self._begin, tokens, draw)
        self.begun = True
        service.metrics.queued.labels(self.target.label).observe(waited)
        service.annotate_span(self)

    async def _in_time(self, work: Awaitable[Result]) -> Result:
        """What the request waits for before it begins."""
        try:
            with fail_after(self.left):
                return await work
        except TimeoutError:
            raise ApiError(503, "no place came free in time", code="timeout", retry=5) from None

    def _prepare(self, logprobs: int | None, matcher: Any) -> Draw:
        """In the thread that prepares: conditions, for the generation that will answer."""
        pool, steering = self.target.pool, self.request.glider
        draw = Draw(pool.model, self.request, logprobs, matcher)
        self.generation = self.target.take()
        began = time.monotonic()
        for prompt in self.prompts:
            query = self.service.query(prompt.text, steering)
            way = self.target.way
            self.guided.append(guided(pool.model, self.generation, way, query, prompt.ids, steering, prompt.turns))
        self.service.metrics.routing.labels(self.target.pool_label).observe(time.monotonic() - began)
        return draw

    def _begin(self, tokens: Sequence[int], draw: Draw) -> None:
        """In the thread that prepares: all answers, so that those of one prompt come into one pass."""
        for number in range(len(self.prompts) * self.request.n):
            self._begin_one(number, tokens[number // self.request.n], draw)

    def _begin_one(self, number: int, tokens: int, draw: Draw) -> None:
        prompt = self.prompts[number // self.request.n]
        guide = self.guided[number // self.request.n]
        trace = weights = None
        if self.request.glider.trace and self.generation.names:
            names = self.generation.names
            trace, weights = TokenTrace(names, guide.condition, len(prompt.ids)), TokenWeights(names)
        form, exact = self.form, self.form != Form()
        decoder = Decoder(self.target.pool.model.tokenizer, self.request.stops, exact, form.marked)
        reader = None if form.reader is None else form.reader()
        self.choices.append(Choice(number, decoder, weights, trace, reader))
        if tokens == 0:
            return
        settings = draw.settings(prompt.ids, number % self.request.n, tokens, self.key.cache_name)
        runner = self.service.runner
        name = runner.add(prompt.ids, guide.condition, settings, self.generation, trace, self._events)
        self._names[name] = number

    async def deltas(self) -> AsyncIterator[Delta]:
        """The additions to the answers, as they come. Raises `ApiError` where one fails, or all take too long."""
        for choice in self.choices:
            if choice.index not in self._names.values():
                choice.finish_reason = "length"
                yield Delta(choice.index, finish_reason="length")
        while self._names:
            try:
                with fail_after(self.left):  # not wait_for, which before Python 3.12 can lose a cancellation
                    event = await self._events.get()
            except TimeoutError:
                raise ApiError(504, "the answer took too long", code="timeout") from None
            if event.request not in self._names:
                continue  # ended by a stop string
            choice = self.choices[self._names[event.request]]
            if isinstance(event, Failed):
                fault = ApiError.of(event.fault, self._blamed)
                fault.message = without_directories(self.service, fault.message)
                raise fault
            delta = self._token(choice, event) if isinstance(event, NewToken) else self._end(choice, event)
            choice.take(delta)
            if delta.finish_reason is not None:
                choice.finish_reason = delta.finish_reason
                del self._names[event.request]
                self.service.runner.forget(event.request)
                self.service.annotate_span(self)
            yield delta

    def _token(self, choice: Choice, event: NewToken) -> Delta:
        self._clock(choice)
        self.completion_tokens += 1
        choice.ids.append(event.token)
        self._reuse[choice.index] = event.reuse or Reuse()
        token = Token(event.token, event.logprob, event.likeliest)
        experts = None
        if choice.trace is not None and choice.weights is not None:
            experts = choice.weights.add(self.service.texts.shown(event.token), *choice.trace.step(event.passes))
            if experts:
                main = max(experts, key=lambda name: experts[name])
                self.service.metrics.expert_tokens.labels(self.target.pool.name, main).inc()
        if event.token in self._ends:
            return Delta(choice.index, end=event.token, experts=experts)  # its `Ended` follows
        text = choice.decoder.add(event.token)
        return self._delta(choice, text, "stop" if choice.decoder.stopped else None, token, experts)

    def _end(self, choice: Choice, event: Ended) -> Delta:
        if event.reason == "cancelled":
            raise shutting_down()
        text = choice.decoder.rest()  # which may have the last character of a stop string
        return self._delta(choice, text, "stop" if choice.decoder.stopped else event.reason)

    def _delta(
        self,
        choice: Choice,
        text: str,
        reason: str | None,
        token: Token | None = None,
        experts: dict[str, float] | None = None,
    ) -> Delta:
        read, grammar = choice.read(text, reason is not None), self.form.grammar
        if reason == "stop" and grammar is not None:
            if grammar.json and not (choice.calls or read.calls):
                require_json(choice.text + read.text)
            if grammar.calls and not (choice.calls or read.calls):
                raise format_error("call of a tool")
        if reason == "stop" and (choice.calls or read.calls):
            reason = "tool_calls"
        return Delta(choice.index, read.text, read.calls, read.reasoning, token, None, reason, experts)

    @property
    def _blamed(self) -> str | None:
        """The field of a request that the engine could not follow."""
        if self.form.grammar is not None:
            return self.form.grammar.param
        return "glider.experts" if isinstance(self.request.glider.experts, dict) else None

    @property
    def _ends(self) -> frozenset[int]:
        model_ends = frozenset[int]() if self.request.ignore_eos else self.target.pool.model.encoder.ends()
        return model_ends | frozenset(self.request.stop_token_ids)

    def _clock(self, choice: Choice) -> None:
        now, metrics, name = time.monotonic(), self.service.metrics, self.target.label
        if choice.last is None:
            metrics.first_token.labels(name).observe(now - self.began)
        else:
            metrics.next_token.labels(name).observe(now - choice.last)
        choice.last = now

    @property
    def left(self) -> float:
        """Seconds that it has."""
        return max(0.001, self.began + self.service.settings.request_timeout - time.monotonic())

    def close(self) -> None:
        """Release what the request holds; may be called at any time and repeatedly."""
        if self._closed:
            return
        self._closed = True
        self.service.annotate_span(self)
        for name in self._names:
            self.service.runner.forget(name)
        if self._places is not None:
            self.service.places.leave(self._places, self.key.name)
        if self.generation is not None:
            self.target.pool.model.attached.give_back(self.generation)
        self.service.ended(self, time.monotonic() - self.began)

    @property
    def glider_field(self) -> dict[str, Any]:
        """The field `glider` of the reply, of its first prompt and first answer."""
        if not self.guided:
            return {}
        first, way, weights = self.guided[0], self.target.way, self.choices[0].weights if self.choices else None
        selection = self.request.glider.experts
        experts: dict[str, float] | None = weights.shares if weights is not None else None
        if way.expert is not None:
            experts = {way.expert: 1.0}
        elif way.kind == "base" or self.request.glider.verdict == "base":
            experts = {}
        elif isinstance(selection, dict):
            experts = dict(selection)
        fields: dict[str, Any] = {"verdict": first.verdict, "alpha": first.alpha, "experts": experts}
        fields |= {"scores": first.scores, "generation": self.target.pool.number(self.generation)}
        if first.fault is not None:
            fields["fault"] = first.fault
        if weights is not None:
            fields["trace"] = weights.content
        return fields
