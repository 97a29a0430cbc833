"""Which request each token of a pass belongs to, and how its tokens are treated."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from glider.engines.vllm.row_table import RowTable
from glider.engines.vllm.rows import ARGUMENT, Row
from glider.layers.context import Batch, Segment
from glider.routing.condition import Condition

STEP = "glider.step"  # of an engine's `static_forward_context`


class Step:
    """The pass in flight of one engine: set before it by the runner, read in it by every routed layer.

    With a table, layers read that; else they take `segments`.
    """

    def __init__(self, experts: int, table: RowTable | None = None):
        self.experts, self.table = experts, table
        self.rows: dict[str, Any] = {}  # of requests that are in flight, as they came; kept where the runner keeps none
        self._known: dict[str, tuple[Any, Row | None]] = {}
        self._batch: Batch | None = None
        self._tokens = 0
        self._alike: tuple[tuple[str, ...], tuple[int, ...]] | None = None
        self._warned = False

    def prepare(self, requests: Sequence[str], rows: Sequence[Any], tokens: Sequence[int]) -> None:
        """The next pass has these requests, each with its row as it came and so many tokens, one after the other."""
        decoded = [self._row(name, row) for name, row in zip(requests, rows, strict=True)]
        alike = (tuple(requests), tuple(tokens))
        if alike == self._alike:
            return
        before, self._alike, self._tokens = self._alike, alike, sum(tokens)
        self._known = {name: self._known[name] for name in requests}  # an idle engine tells nobody which requests ended
        with torch.inference_mode(False), torch.no_grad():  # tensors that outlive this pass
            if self.table is not None:
                if before is None or before[0] != alike[0]:
                    self.table.set_rows(decoded)
                self.table.set_tokens(tokens)
                return
            condition = Condition.cat([Condition.nobody(1) if row is None else row.condition for row in decoded])
            if bool(condition.bare_rows.all()):
                self._batch = None
                return
            owner = torch.arange(len(requests)).repeat_interleave(torch.tensor(tokens))
            self._batch = Batch.of(condition, owner)

    def forget(self, requests: Sequence[str]) -> None:
        """These requests have ended."""
        for name in requests:
            self._known.pop(name, None)
            self.rows.pop(name, None)
        self._alike = None

    def segments(self, tokens: int, device: torch.device) -> tuple[int, Sequence[Segment]]:
        """How many of a layer's tokens are those of requests, and how to treat them. Padding comes after those.

        A pass of fewer tokens is none of requests: vLLM tries itself then, and the base answers.
        """
        if self._batch is None or tokens < self._tokens:
            return 0, ()
        return self._tokens, self._batch.segments(self._tokens, None, device)

    def _row(self, request: str, value: Any) -> Row | None:
        known = self._known.get(request)
        if known is not None and known[0] is value:
            return known[1]
        row = None if value is None else Row.decoded(value, self.experts)
        if self.table is not None and row is not None and len(row.experts) > self.table.queries.experts.shape[1]:
            row = None
        if row is None and value is not None and not self._warned:  # the front makes rows; another's are none
            self._warned = True
            logging.getLogger("glider").error("a request has a row that is none; the base answers it")
        self._known[request] = (value, row)
        self._alike = None
        return row


def prepare_inputs(before: Callable) -> Callable:
    """`GPUModelRunner._prepare_inputs` of the V1 runner, which is called before each pass over requests."""

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any, *args: Any, **more: Any) -> Any:
        step = step_of(self)
        if step is not None:
            if scheduler_output.finished_req_ids:
                step.forget(list(scheduler_output.finished_req_ids))
            names = list(self.input_batch.req_ids)
            rows = [row_of(self.requests[name].sampling_params) for name in names]
            step.prepare(names, rows, num_scheduled_tokens.tolist())
        return before(self, scheduler_output, num_scheduled_tokens, *args, **more)

    return _prepare_inputs


def add_requests(before: Callable) -> Callable:
    """`GPUModelRunner.add_requests` of the V2 runner, which keeps no sampling parameters."""

    def added(self: Any, scheduler_output: Any) -> Any:
        step = step_of(self)
        if step is not None:
            step.forget([*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())])
            for request in scheduler_output.scheduled_new_reqs:
                step.rows[request.req_id] = row_of(request.sampling_params)
        return before(self, scheduler_output)

    return added


def prepare_batch(before: Callable) -> Callable:
    """`GPUModelRunner.prepare_inputs` of the V2 runner, which is called before each pass over requests."""

    def prepared(self: Any, scheduler_output: Any, batch_req_state: Any, *args: Any, **more: Any) -> Any:
        step = step_of(self)
        if step is not None:
            names = list(batch_req_state.req_ids)
            step.prepare(names, [step.rows[name] for name in names], batch_req_state.num_scheduled_tokens.tolist())
        return before(self, scheduler_output, batch_req_state, *args, **more)

    return prepared


def step_of(runner: Any) -> Step | None:
    """The step of a runner's engine; None for one that routes nothing."""
    return runner.vllm_config.compilation_config.static_forward_context.get(STEP)


def row_of(params: Any) -> Any:
    """A request's row, as it came with its sampling parameters."""
    extra = None if params is None else params.extra_args
    return None if not extra else extra.get(ARGUMENT)
