"""Requests in padded batches by transformers' own `generate`: for models and routers whose passes cannot be packed."""

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from glider.errors import GliderError, QueryError
from glider.inference.engine import Can, Ended, Event, Failed, NewToken, PrefixCache, require_finite
from glider.inference.forward import padded
from glider.inference.sampler import RequestSettings, Sampler, not_finite
from glider.inference.sharing import Sharing
from glider.layers.attach import Attached, Generation
from glider.layers.trace import Trace
from glider.routing.base import support_of
from glider.routing.condition import Condition

ROWS = 8  # of a batch
_WITHOUT_CACHE = "Use generate(..., use_cache=False)."


@dataclass
class _Row:
    """A request, and how far it has come."""

    name: str
    ids: list[int]
    condition: Condition | None
    settings: RequestSettings
    trace: Trace | None
    generation: Generation
    sampler: Sampler
    tokens: list[int] = field(default_factory=list)
    cancelled: bool = False
    ended: str = ""  # why, once it has


class PaddedEngine:
    """An `Engine` that runs requests in padded batches, one batch after the other; none can join one that runs.

    Requests of one batch have one generation of the pool, and none of them a trace (those run alone); where the model
    gives something else in a padded batch, their prompts are of one length.
    """

    def __init__(self, attached: Attached, pad_id: int, why_not: str = "", rows: int = ROWS):
        self._attached, self._model = attached, attached.model
        self._pad, self._rows = pad_id, rows if support_of(attached.router).mixed else 1
        self._can = Can(join=False, why_not=why_not)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._waiting: deque[_Row] = deque()
        self._known: dict[str, _Row] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def can(self) -> Can:
        return self._can

    @property
    def prefix_cache(self) -> PrefixCache:
        return PrefixCache()  # each batch has a cache of its own

    def add(
        self,
        request: str,
        ids: Sequence[int],
        condition: Condition | None,
        settings: RequestSettings,
        trace: Trace | None = None,
        generation: Generation | None = None,
    ) -> None:
        require_finite(condition)
        self._attached.require_served(condition)
        router = (generation or self._attached.generation).router
        if not support_of(router).cache:
            got = "an engine, which keeps one"
            raise QueryError(f"no cache of keys and values (router {type(router).__name__})", got, _WITHOUT_CACHE)
        sampler = Sampler(settings, self._model.device)  # pyright: ignore[reportArgumentType]
        with self._changed:
            if request in self._known:
                raise QueryError("a request of a new name", request, "Name it otherwise.")
            row = _Row(request, list(ids), condition, settings, trace, self._attached.take(generation), sampler)
            self._known[request] = row
            self._waiting.append(row)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    @contextmanager
    def gather(self) -> Iterator[None]:
        with self._changed:  # which the thread that makes the batches waits for
            yield

    def cancel(self, request: str) -> None:
        with self._changed:
            if (row := self._known.get(request)) is not None:
                row.cancelled = True

    def next_event(self, timeout: float | None = None) -> Event | None:
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            for row in self._known.values():
                row.cancelled = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                batch = self._next_batch()
            if not batch:
                return
            try:
                self._generate(batch)
            except Exception as fault:  # its requests fail, and the next batch has its own luck
                for row in batch:
                    self._end(row, fault)
            for row in batch:
                self._end(row)

    def _next_batch(self) -> list[_Row]:
        """Requests that can run together, in the order they came."""
        batch: list[_Row] = []
        for row in list(self._waiting):
            if len(batch) == self._rows:
                break
            alone = row.trace is not None or (bool(batch) and batch[0].trace is not None)
            if not batch or (not alone and row.generation is batch[0].generation and self._fits(row, batch)):
                batch.append(row)
                self._waiting.remove(row)
        return batch

    def _fits(self, row: _Row, batch: list[_Row]) -> bool:
        """Whether the model gives the same for a prompt beside others, padded to the longest."""
        together = (row, *batch)
        if row.settings.start != batch[0].settings.start:
            return False
        lengths = {len(one.ids) for one in together}
        answers = max(one.settings.max_new_tokens for one in together)
        longest = max(lengths) + (0 if self._model.config.is_encoder_decoder else answers)  # pyright: ignore
        sharing = Sharing(self._model, self._attached.bare)
        return len(lengths) == 1 or sharing.allows("generation", longest)

    @torch.inference_mode()
    def _generate(self, batch: list[_Row]) -> None:
        for row in batch:
            if row.cancelled:
                self._end(row)
        live = [row for row in batch if not row.ended]
        if not live:
            return
        conditions = [Condition.local(1) if row.condition is None else row.condition for row in live]
        trace, generation, start = live[0].trace, live[0].generation, live[0].settings.start
        steps, ended = LogitsProcessorList([_Steps(self, live)]), StoppingCriteriaList([_AllEnded(live)])
        support = support_of(generation.router)

        def decode(
            model: Any,
            input_ids: Any,
            logits_processor: Any,
            stopping_criteria: Any,
            generation_config: Any,
            **more: Any,
        ) -> Any:
            """transformers' loop, with the rows' replaced processors in place of the model's for all of them."""
            if not support.chunked or model.config.is_encoder_decoder:  # whatever the base's own settings say
                generation_config.prefill_chunk_size = None
            return model._sample(input_ids, steps, ended, generation_config, **more)

        model: Any = self._model
        arguments = {"use_cache": True} if support.sequences else {}  # which tells a prompt from its answer
        arguments |= {} if start is None else {"decoder_start_token_id": start}
        with self._attached.routing(Condition.cat(conditions), recorder=trace, generation=generation):
            model.generate(
                **padded([row.ids for row in live], self._pad, model),
                max_new_tokens=max(row.settings.max_new_tokens for row in live),
                do_sample=False,
                num_beams=1,
                num_return_sequences=1,
                eos_token_id=None,
                pad_token_id=self._pad,
                custom_generate=decode,
                **arguments,
            )

    def _end(self, row: _Row, fault: Exception | None = None) -> None:
        """Tell how a request ended, once."""
        with self._changed:
            if self._known.pop(row.name, None) is None:
                return
        self._attached.give_back(row.generation)
        if fault is not None:
            self._events.put(Failed(row.name, fault))
        else:
            reason = row.ended or ("cancelled" if row.cancelled else "length")
            self._events.put(Ended(row.name, reason, tuple(row.tokens)))


class _Steps(LogitsProcessor):
    """Chooses the next token of each row by the row's own settings, and leaves `generate` no other."""

    def __init__(self, engine: PaddedEngine, rows: list[_Row]):
        self._engine, self._live = engine, rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        for number, row in enumerate(self._live):
            token = self._engine._pad
            if not row.ended:
                seq2seq = self._engine._model.config.is_encoder_decoder  # pyright: ignore
                so_far = input_ids[number].tolist() if seq2seq else [*row.ids, *row.tokens]
                token = self._next(row, so_far, scores[number].float())
            forced[number, token] = 0
        return forced

    def _next(self, row: _Row, so_far: Sequence[int], logits: torch.Tensor) -> int:
        if bool(logits.isnan().any()) or not bool(logits.isfinite().any()):
            return self._fail(row, not_finite())
        try:
            token, logprob, likeliest = row.sampler.next(so_far, logits)
        except GliderError as fault:
            return self._fail(row, fault)
        row.tokens.append(token)
        if not row.cancelled:
            passes = 0 if row.trace is None else row.trace.passes
            self._engine._events.put(NewToken(row.name, token, logprob, likeliest, passes))
        if token in row.settings.ends:
            row.ended = "stop"
        elif len(row.tokens) >= row.settings.max_new_tokens:
            row.ended = "length"
        elif row.cancelled:
            row.ended = "cancelled"
        if row.ended and row.trace is None:
            self._engine._end(row)
        return token

    def _fail(self, row: _Row, fault: GliderError) -> int:
        """Give up a request that has no next token; the others go on."""
        row.ended = "failed"
        self._engine._end(row, fault)
        return self._engine._pad


class _AllEnded(StoppingCriteria):
    """Ends the batch with its last row."""

    def __init__(self, rows: list[_Row]):
        self._live = rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        ended = [bool(row.ended) for row in self._live]
        return torch.tensor(ended, device=input_ids.device)
