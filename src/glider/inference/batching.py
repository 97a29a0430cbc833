"""Many prompts by transformers' continuous batching: requests of any length share each forward pass.

Its scheduler packs tokens of several requests into one row without padding, lets a request in when another ends, and
may spread a long prompt over several passes. It runs the model in a thread of its own. Before each pass a hook looks up
which requests are in it, by their ids, and hands the routed layers their global terms and a token-to-query map.
"""

import copy
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
import transformers

from glider.errors import BatchingError, GliderError, QueryError
from glider.layers.attach import Attached
from glider.routing.base import Condition

if TYPE_CHECKING:
    from transformers import ContinuousBatchingConfig

_SETTINGS = ("do_sample", "temperature", "top_k", "top_p", "eos_token_id", "pad_token_id")
_REQUESTS = 32  # at once, where the caller does not say
_PASS_TOKENS = 512  # of one forward pass, likewise
_PAGE = 32  # tokens: the cache is given out by pages
_UPGRADE = "Upgrade transformers to 5.18 or later, or use generate()."


class PackedRouting:
    """Hooks that give each pass of one continuous batching run the global terms of the requests packed into it."""

    def __init__(self, attached: Attached, condition: Condition | None, manager: Any):
        self._attached, self._condition, self._manager = attached, condition, manager
        self._pass = ExitStack()
        self.fault: GliderError | None = None  # raised in the manager's thread, which would keep its text alone

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Route the run's passes inside the block; passes of other threads are left as they are."""
        model = self._attached.model
        before = model.register_forward_pre_hook(self._enter, with_kwargs=True)
        after = model.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        if not self._own(inputs):
            return
        try:
            condition, token_to_query = self._packed(inputs)
        except GliderError as fault:
            self.fault = fault
            raise
        self._pass.enter_context(self._attached.routing(condition, token_to_query=token_to_query))

    def _leave(self, _: Any, __: Any, inputs: dict[str, Any], ___: Any) -> None:
        if self._own(inputs):
            self._pass.close()

    def _own(self, inputs: dict[str, Any]) -> bool:
        cache = inputs.get("cache")
        return cache is not None and cache is getattr(self._manager.batch_processor, "cache", None)

    def _packed(self, inputs: dict[str, Any]) -> tuple[Condition | None, torch.Tensor | None]:
        """The condition of the requests in this pass (a row each), and each packed token's row (T,)."""
        if self._condition is None:
            return None, None
        try:
            requests = self._manager.batch_processor.inputs_and_outputs.requests_in_batch
            rows = [int(request.state.request_id) for request in requests]
            lengths = torch.tensor([request.query_length for request in requests])
            told = inputs["cu_seq_lens_q"].cpu().long().diff()
        except (AttributeError, KeyError) as fault:
            got = f"transformers {transformers.__version__}, where that is missing ({fault})"
            raise BatchingError("a scheduler that tells the requests of a pass", got, _UPGRADE) from fault
        if not torch.equal(told, lengths) or int(lengths.sum()) != inputs["input_ids"].shape[-1]:
            got = f"{lengths.tolist()} where the cumulative lengths say {told.tolist()}"
            raise BatchingError("requests whose tokens fill the pass in order", got, _UPGRADE)
        whole = self._condition
        index = torch.tensor(rows, device=whole.alpha.device)
        packed = Condition(whole.global_scores[index], whole.alpha[index], whole.signal)
        return packed, torch.arange(len(rows)).repeat_interleave(lengths)


def generate_packed(
    attached: Attached,
    prompts: Sequence[list[int]],
    condition: Condition | None,
    *,
    max_new_tokens: int,
    ends: Set[int],
    generation: dict[str, Any],
    batching: "ContinuousBatchingConfig | None",
    on_end: Callable[[int, list[int]], None],
) -> None:
    """Answer prompts in tokens, each by its own row of the condition; `on_end(row, tokens)` is called as each ends.

    Raises `QueryError` for settings that cannot be applied to packed requests, and `BatchingError` where transformers
    or the model has no continuous batching, or a pass fails.
    """
    model: Any = attached.model
    _require(model)
    settings = _settings(model, {**generation, "max_new_tokens": max_new_tokens, "eos_token_id": sorted(ends) or -1})
    sized = _sized(batching, [len(ids) + max_new_tokens for ids in prompts], share=_alike(condition))
    state = None if settings.do_sample else torch.get_rng_state()  # the manager sets a seed, greedy or not
    try:
        manager = model.init_continuous_batching(generation_config=settings, continuous_batching_config=sized)
    except ValueError as fault:
        remedy = "Load the base with attention sdpa or eager, or use generate()."
        raise BatchingError("a model for continuous batching", str(fault), remedy) from fault
    routing = PackedRouting(attached, condition, manager)
    try:
        with routing.installed():
            manager.start()
            try:
                for row, ids in enumerate(prompts):
                    manager.add_request(ids, request_id=str(row), max_new_tokens=max_new_tokens)
                for row, ids in _results(manager, len(prompts), routing):
                    on_end(row, ids)
            finally:
                _stop(manager)
    finally:
        manager.destroy()
        if state is not None:
            torch.set_rng_state(state)


def _stop(manager: Any) -> None:
    """Stop it, but without its two collections over every object of the process: seconds where much is imported."""
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        manager.stop(block=True, hard_stop=True)
    finally:
        if ours:
            gc.unfreeze()


def _results(manager: Any, count: int, routing: PackedRouting) -> Iterator[tuple[int, list[int]]]:
    """Each request's row and tokens as it ends."""
    while count:
        result = manager.get_result(timeout=1.0)
        if result is None and manager.is_running():
            continue
        if result is None or result.error is not None:
            if routing.fault is not None:
                raise routing.fault
            ended = getattr(manager.background_thread_status, "fatal_error", None) or "a scheduler that stopped"
            got = str(ended) if result is None else result.error
            raise BatchingError("every request answered", got, "Give a larger cache in `batching`, or use generate().")
        if result.is_finished():
            count -= 1
            yield int(result.request_id), result.generated_tokens


def _require(model: Any) -> None:
    """Raise `BatchingError` where continuous batching is missing, or held by a run that was kept."""
    config = getattr(transformers, "ContinuousBatchingConfig", None)
    if config is None or "page_size" not in {field.name for field in fields(config)}:
        got = f"transformers {transformers.__version__}"
        raise BatchingError("transformers with continuous batching by pages", got, _UPGRADE)
    if model.config.is_encoder_decoder or not hasattr(model, "init_continuous_batching"):
        raise BatchingError("a decoder-only model for continuous batching", type(model).__name__, "Use generate().")
    if getattr(model, "_cached_continuous_batching_manager", None) is not None:
        remedy = "Call destroy_cached_continuous_batching_manager() on the model."
        raise BatchingError("a model free for a run of its own", "one that keeps a manager of another run", remedy)


def _settings(model: Any, wanted: dict[str, Any]) -> Any:
    """transformers' generation settings, completed as `generate` completes them."""
    if odd := wanted.keys() - {*_SETTINGS, "max_new_tokens"}:
        raise QueryError(f"settings among {', '.join(_SETTINGS)}", ", ".join(sorted(odd)), "Use generate() for others.")
    settings, _ = model._prepare_generation_config(None, **{"do_sample": False, **wanted})
    modes = ("greedy_search", "sample")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some miss the prompt; none of those stays
        processors = model._get_logits_processor(settings)
    odd = [type(one).__name__ for one in processors if not one.supports_continuous_batching]
    odd += [mode.value] if (mode := settings.get_generation_mode()).value not in modes else []
    if odd or settings.num_return_sequences not in (None, 1):
        got = ", ".join(odd) or f"{settings.num_return_sequences} answers to each prompt"
        raise QueryError("a base whose own settings suit packed requests", got, "Use generate().")
    return settings


def _sized(batching: Any, lengths: Sequence[int], *, share: bool) -> Any:
    """The scheduler's settings, with what they leave open made for requests of these lengths (answers included).

    Left to itself it takes six tenths of a CPU's memory for its cache.
    """
    batching = transformers.ContinuousBatchingConfig(page_size=_PAGE) if batching is None else copy.copy(batching)
    compiled = batching.varlen_compile_config or batching.decode_compile_config or batching.default_compile_level
    graphs = batching.use_cuda_graph
    if batching.use_async_batching or compiled or (any(graphs) if isinstance(graphs, tuple) else graphs):
        got = "use_async_batching, use_cuda_graph or a compiled pass"
        raise QueryError("passes that look up their requests", got, "Leave these out of `batching`.")
    requests = batching.max_requests_per_batch or min(len(lengths), _REQUESTS)
    open_: dict[str, Any] = {"use_cuda_graph": False, "use_async_batching": False, "max_requests_per_batch": requests}
    open_["max_batch_tokens"] = batching.max_batch_tokens or _PASS_TOKENS
    if batching.num_blocks is None:
        longest = sorted(lengths, reverse=True)[:requests]
        open_["num_blocks"] = sum(ceil(length / batching.page_size) + 1 for length in longest)
        if batching.safety_margin is None:
            open_["safety_margin"] = 0.0  # so many requests fit
    # keys and values depend on the global term: two queries may share a prefix only where theirs is the same
    open_["allow_block_sharing"] = batching.allow_block_sharing and share
    return replace(batching, **open_)


def _alike(condition: Condition | None) -> bool:
    return condition is None or bool((condition.term == condition.term[:1]).all())
