"""Requests that share forward passes, by transformers' continuous batching.

Its scheduler packs tokens of several requests into one row without padding, lets a request in when another ends, and
may spread a long prompt over several passes. It runs the model in a thread of its own. Before each pass a hook looks up
which requests are in it, by their ids, and hands the routed layers their conditions and a token-to-query map; after it
each request's next token is chosen by its own settings.
"""

import array
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
import transformers

from glider.errors import BatchingError, GliderError, QueryError
from glider.inference.engine import Can, Ended, Event, Failed, NewToken, PrefixCache, Reuse, require_finite
from glider.inference.packing import SALT, UPGRADE, refusal, sized, stop
from glider.inference.paged_attention import paged_attention
from glider.inference.sampler import RequestSettings, Sampler, not_finite
from glider.layers.attach import Attached, Generation
from glider.layers.context import Batch, Part
from glider.layers.trace import PackedRecorder, Trace
from glider.routing.condition import Condition

if TYPE_CHECKING:
    from transformers import ContinuousBatchingConfig


@dataclass
class _Request:
    """A request in flight."""

    generation: Generation
    condition: Condition | None
    sampler: Sampler
    trace: Trace | None
    salt: tuple[int, ...]
    length: int  # of its prompt
    cancelled: bool = False  # by the caller: nothing more is told but its end
    failed: bool = False  # which was told
    cached: int = 0  # tokens of the prompt that the cache had when it was looked up last
    marked: int = 0  # tokens whose pages later requests may share
    reuse: Reuse | None = None  # once it has a token


class PackedEngine:
    """An `Engine` whose requests join and leave while it runs.

    `batching` says how many requests and tokens a pass takes and how large the cache is; `lengths` are those of the
    requests to come, answers included, where they are known. Blocks of the cache are shared between requests of one
    condition, generation and `cache` alone. Raises `BatchingError` where transformers or the model cannot do it,
    `QueryError` for a `batching` whose passes could not be looked into.
    """

    def __init__(
        self, attached: Attached, batching: "ContinuousBatchingConfig | None" = None, lengths: Sequence[int] = ()
    ):
        if reason := refusal(attached):
            raise reason
        self._attached, self._model = attached, attached.model
        self._batching = sized(batching, lengths)
        self._requests: dict[str, _Request] = {}
        self._lock = threading.Lock()  # of the requests
        self._starting = threading.Lock()  # of the manager; never held by its own thread
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._manager: Any = None
        self._pass = ExitStack()
        self._fault: GliderError | None = None  # raised in the manager's thread, which would keep its text alone
        self._hooks = ExitStack()
        self._packed: list[_Request] = []  # of the pass in flight, in its order
        self._prefix_cache = PrefixCache()

    @property
    def can(self) -> Can:
        return Can()

    @property
    def prefix_cache(self) -> PrefixCache:
        return self._prefix_cache

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
        generation = self._attached.take(generation)
        salt = _salt(condition, generation.number, settings.cache)
        sampler = Sampler(settings, self._model.device)  # pyright: ignore[reportArgumentType]
        try:
            with self._starting:
                manager = self._running_manager()
            with self._lock:
                if request in self._requests:
                    raise QueryError("a request of a new name", request, "Name it otherwise.")
                self._requests[request] = _Request(generation, condition, sampler, trace, salt, len(ids))
        except BaseException:
            self._attached.give_back(generation)
            raise
        try:
            manager.add_request(
                list(ids),
                request_id=request,
                max_new_tokens=settings.max_new_tokens,
                eos_token_id=sorted(settings.ends) or -1,
            )
        except BaseException:
            with self._lock:
                self._requests.pop(request, None)
            self._attached.give_back(generation)
            raise

    def gather(self) -> AbstractContextManager[None]:
        return nullcontext()  # those that come later join

    def cancel(self, request: str) -> None:
        with self._lock:
            known = self._requests.get(request)
        if known is not None:
            known.cancelled = True
            self._manager.cancel_request(request)

    def next_event(self, timeout: float | None = None) -> Event | None:
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        with self._starting:
            self._end_manager()
        for request in list(self._requests):
            self._forget(request)

    def _end_manager(self) -> None:
        if self._manager is None:
            return
        try:
            stop(self._manager)
        finally:
            self._manager.destroy()
            self._hooks.close()
            self._manager = None

    def _running_manager(self) -> Any:
        """The manager, started anew where there is none or a fault ended it."""
        if self._manager is not None and self._manager.background_thread_status.can_accept_new_requests() is None:
            return self._manager
        self._end_manager()
        model: Any = self._model
        settings = transformers.GenerationConfig(do_sample=False, max_new_tokens=1, eos_token_id=-1)
        on_gpu = model.device.type == "cuda"
        state, gpu_state = torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_gpu else []
        self._hooks.enter_context(paged_attention(model))
        try:  # the manager sets a seed, whoever else draws
            manager = model.init_continuous_batching(
                generation_config=settings, continuous_batching_config=self._batching
            )
        except ValueError as fault:
            self._hooks.close()
            remedy = "Load the base with attention sdpa or eager, or use generate()."
            raise BatchingError("a model for continuous batching", str(fault), remedy) from fault
        manager.output_router.output_queue = _Outputs(self._ended)
        self._fault, self._manager = None, manager
        self._hooks.enter_context(self._installed(model))
        manager.start()
        self._await_start(manager)
        torch.set_rng_state(state)
        if on_gpu:
            torch.cuda.set_rng_state_all(gpu_state)
        return manager

    def _await_start(self, manager: Any) -> None:
        """Wait for the manager's thread to make its cache, and take over its choice of tokens."""
        while manager.batch_processor is None and manager.is_running():
            threading.Event().wait(0.002)
        processor = manager.batch_processor
        if processor is None:
            ended = manager.background_thread_status.fatal_error or "a scheduler that stopped"
            raise BatchingError("a running scheduler", str(ended), UPGRADE)
        try:
            processor.model_runner._sample = self._choose
            processor.scheduler.clear_cancelled_requests = self._cleared(processor.scheduler.clear_cancelled_requests)
            if processor.cache.use_prefix_sharing:
                self._mark_blocks(processor.cache)
        except AttributeError as fault:
            got = f"transformers {transformers.__version__}, where that is missing ({fault})"
            raise BatchingError("a scheduler that can be looked into", got, UPGRADE) from fault

    @contextmanager
    def _installed(self, model: Any) -> Iterator[None]:
        """Route the engine's passes inside the block; passes of other threads are left as they are.

        It comes before the hooks of plain calls, which would hold the current generation for the length of a pass.
        """
        before = model.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
        after = model.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, _: Any, args: Any, inputs: dict[str, Any] | None = None) -> Any:
        # torch hands no keywords to a hook that comes or goes while a pass of another thread is under way.
        if inputs is None or not self._is_packed(inputs):
            return None
        try:
            batch = self._batch(inputs)
        except GliderError as fault:
            self._fault = fault
            raise
        self._pass.enter_context(self._attached.context.use(batch))
        # transformers writes this word into the model's configuration while the pass runs, where a pass of another
        # thread reads it and would attend to what is to come. Passes with a mask, or through flash, need it not.
        return args, {name: value for name, value in inputs.items() if name != "is_causal"}

    def _leave(self, _: Any, __: Any, *inputs_and_outputs: Any) -> None:
        if len(inputs_and_outputs) == 2 and self._is_packed(inputs_and_outputs[0]):
            self._pass.close()

    def _is_packed(self, inputs: dict[str, Any]) -> bool:
        cache, manager = inputs.get("cache"), self._manager
        return cache is not None and manager is not None and cache is getattr(manager.batch_processor, "cache", None)

    def _batch(self, inputs: dict[str, Any]) -> Batch:
        """The requests in this pass, by generation, and each packed token's query."""
        try:
            packed = self._manager.batch_processor.inputs_and_outputs.requests_in_batch
            requests = [self._requests[one.state.request_id] for one in packed]
            lengths = torch.tensor([one.query_length for one in packed])
            cumulative = inputs["cu_seq_lens_q"].cpu().long().diff()
        except (AttributeError, KeyError) as fault:
            got = f"transformers {transformers.__version__}, where that is missing ({fault})"
            raise BatchingError("a scheduler that tells the requests of a pass", got, UPGRADE) from fault
        if not torch.equal(cumulative, lengths) or int(lengths.sum()) != inputs["input_ids"].shape[-1]:
            got = f"{lengths.tolist()} where the cumulative lengths say {cumulative.tolist()}"
            raise BatchingError("requests whose tokens fill the pass in order", got, UPGRADE)
        self._packed = [one for one, state in zip(requests, packed, strict=True) if state.has_new_token]
        numbers = list(dict.fromkeys(request.generation.number for request in requests))
        order = sorted(range(len(requests)), key=lambda i: numbers.index(requests[i].generation.number))
        parts = []
        for number in numbers:
            mine = [requests[i] for i in order if requests[i].generation.number == number]
            conditions = [Condition.local(1) if one.condition is None else one.condition for one in mine]
            parts.append(Part(number, Condition.cat(conditions)))
        query_of = torch.tensor(order).argsort()  # each request's place among the parts
        token_to_query = query_of.repeat_interleave(lengths)
        traces = [requests[i].trace for i in order]
        recorder = PackedRecorder(traces, token_to_query) if any(trace is not None for trace in traces) else None
        return Batch(tuple(parts), token_to_query, recorder)

    def _choose(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        """Choose the next token of every request in the pass (logits (1, N, V)) into `output_ids`, and tell of it."""
        logits = scores[0]
        packed = self._manager.batch_processor.inputs_and_outputs.requests_in_batch
        states = [one.state for one in packed if one.has_new_token]
        broken = (logits.isnan().any(dim=-1) | ~logits.isfinite().any(dim=-1)).tolist()
        likeliest = logits.argmax(dim=-1).tolist()
        tokens = []
        for row, (request, state) in enumerate(zip(self._packed, states, strict=True)):
            token, logprob, others = likeliest[row], None, ()
            if broken[row]:
                self._fail(state.request_id, request, not_finite())
            elif not request.sampler.plain:
                so_far = [*state.initial_tokens, *state.generated_tokens]
                try:
                    token, logprob, others = request.sampler.next(so_far, logits[row])
                except GliderError as fault:
                    self._fail(state.request_id, request, fault)
            tokens.append(token)
            if not request.cancelled and not request.failed:
                passes = 0 if request.trace is None else request.trace.passes
                reuse = self._reuse(request, token)
                self._events.put(NewToken(state.request_id, token, logprob, others, passes, reuse))
        output_ids[0, : len(tokens)].copy_(torch.tensor(tokens, dtype=output_ids.dtype))

    def _reuse(self, request: _Request, token: int) -> Reuse:
        """What the cache had of a prompt, and has of it now: known with its first token. Of one that ends with that the
        pages of the pass are shared with nobody."""
        if not self._manager.batch_processor.cache.use_prefix_sharing:
            return Reuse()
        if request.reuse is None:
            settings, page = request.sampler.settings, self._batching.page_size
            ends = settings.max_new_tokens == 1 or token in settings.ends
            stored = request.marked if ends else max(0, request.length // page * page - request.cached)
            request.reuse, before = Reuse(request.cached, stored), self._prefix_cache
            self._prefix_cache = PrefixCache(before.queries + request.length, before.hits + request.cached)
        return request.reuse

    def _fail(self, name: str, request: _Request, fault: GliderError) -> None:
        """Give up a request that has no next token; the others go on."""
        if not request.failed:
            request.failed = True
            self._events.put(Failed(name, fault))
            self._manager.cancel_request(name)

    def _ended(self, result: Any) -> None:
        """Tell how a request ended; called in the manager's thread."""
        if not result.is_finished():
            return
        request = self._forget(result.request_id)
        if request is None or request.failed:
            return
        if request.cancelled:
            self._events.put(Ended(result.request_id, "cancelled", tuple(result.generated_tokens)))
            return
        if result.error is not None:
            fault = self._fault or BatchingError(
                "every request answered", result.error, "Give a larger cache in `batching`, or use generate()."
            )
            self._events.put(Failed(result.request_id, fault))
            return
        tokens = tuple(result.generated_tokens)
        reason = "stop" if tokens and tokens[-1] in request.sampler.settings.ends else "length"
        self._events.put(Ended(result.request_id, reason, tokens))

    def _cleared(self, clear: Any) -> Any:
        """`clear`, which takes cancelled requests out, and then tells of them."""

        def clear_and_tell() -> Any:
            states = clear()
            for state in states:
                request = self._forget(state.request_id)
                if request is not None and not request.failed:
                    tokens = (*state.initial_tokens[state._true_initial_tokens or len(state.initial_tokens) :],)
                    self._events.put(Ended(state.request_id, "cancelled", (*tokens, *state.generated_tokens)))
            return states

        return clear_and_tell

    def _forget(self, name: str) -> _Request | None:
        with self._lock:
            request = self._requests.pop(name, None)
        if request is not None:
            self._attached.give_back(request.generation)
        return request

    def _mark_blocks(self, cache: Any) -> None:
        """Let blocks of one content be the same only where condition and generation are.

        transformers finds a block by a hash of its tokens and of the block before; the first tokens are marked by what
        the keys and values depend on beside them.
        """
        search = cache.search_prefix_match

        def marked(request_id: str, tokens: Sequence[int]) -> list[int]:
            salt = self._requests[request_id].salt
            return [token ^ mark for token, mark in zip(tokens, salt, strict=False)] + list(tokens[len(salt) :])

        def search_by_condition(request_id: str, tokens: Sequence[int]) -> int:
            shared = search(request_id, marked(request_id, tokens))
            self._requests[request_id].cached = shared  # one that waits for room is looked up with every pass
            return shared

        cache.search_prefix_match = search_by_condition
        for number, allocator in enumerate(cache.cache_allocators.values()):
            mark = allocator.mark_complete_blocks

            def mark_by_condition(
                request_id: str, tokens: list[int], count: int, mark: Any = mark, first: bool = number == 0
            ) -> Any:
                request = self._requests.get(request_id)
                if request is None:  # one that is being cancelled shares nothing more
                    return None
                request.marked += count * self._batching.page_size if first else 0  # they all have the same tokens
                return mark(request_id, marked(request_id, tokens), count)

            allocator.mark_complete_blocks = mark_by_condition


class _Outputs:
    """In place of the manager's queue of results: each is handed on as it comes."""

    def __init__(self, take: Any):
        self.put = take

    def empty(self) -> bool:
        return True


def _salt(condition: Condition | None, generation: int, cache: str) -> tuple[int, ...]:
    """Marks by which blocks of unlike conditions, generations and caches are told apart."""
    row = b"" if condition is None else condition.digest(0)
    digest = sha256(generation.to_bytes(8, "little") + sha256(cache.encode()).digest() + row).digest()
    return tuple(array.array("i", digest)[:SALT])
