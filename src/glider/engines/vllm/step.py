"""Which request each token of a pass belongs to, and how its tokens are treated."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from glider.engines.vllm.rows import ARGUMENT, Row
from glider.layers.context import Batch, Segment
from glider.routing.condition import Condition

STEP = "glider.step"  # of an engine's `static_forward_context`


class Step:
    """The pass in flight of one engine: set before it by the runner, read in it by every routed layer."""

    def __init__(self, experts: int):
        self.experts = experts
        self._conditions: dict[str, tuple[Any, Condition]] = {}
        self._batch: Batch | None = None
        self._tokens = 0
        self._alike: tuple[tuple[str, ...], tuple[int, ...]] | None = None
        self._told = False

    def prepare(self, requests: Sequence[str], rows: Sequence[Any], tokens: Sequence[int]) -> None:
        """The next pass has these requests, each with its row as it came and so many tokens, one after the other."""
        conditions = [self._condition(name, row) for name, row in zip(requests, rows, strict=True)]
        alike = (tuple(requests), tuple(tokens))
        if alike == self._alike:
            return
        self._alike, self._tokens = alike, sum(tokens)
        with torch.inference_mode(False), torch.no_grad():  # tensors that outlive this pass
            condition = Condition.cat(conditions)
            if bool(condition.bare_rows.all()):
                self._batch = None
                return
            owner = torch.arange(len(requests)).repeat_interleave(torch.tensor(tokens))
            self._batch = Batch.of(condition, owner)

    def forget(self, requests: Sequence[str]) -> None:
        """These requests have ended."""
        for name in requests:
            self._conditions.pop(name, None)
        self._alike = None

    def segments(self, tokens: int, device: torch.device) -> tuple[int, Sequence[Segment]]:
        """How many of a layer's tokens are those of requests, and how to treat them. Padding comes after those.

        A pass of fewer tokens is none of requests: vLLM tries itself then, and the base answers.
        """
        if self._batch is None or tokens < self._tokens:
            return 0, ()
        return self._tokens, self._batch.segments(self._tokens, None, device)

    def _condition(self, request: str, row: Any) -> Condition:
        known = self._conditions.get(request)
        if known is not None and known[0] is row:
            return known[1]
        condition = Condition.nobody(1)
        if row is not None:
            decoded = Row.decoded(row, self.experts)
            if decoded is not None:
                condition = decoded.condition
            elif not self._told:  # the front makes rows; another's are none
                self._told = True
                logging.getLogger("glider").error("a request has a row that is none; the base answers it")
        self._conditions[request] = (row, condition)
        self._alike = None
        return condition


def prepare_inputs(before: Callable) -> Callable:
    """`GPUModelRunner._prepare_inputs`, which is called before each pass over requests."""

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any, *args: Any, **more: Any) -> Any:
        step: Step | None = self.vllm_config.compilation_config.static_forward_context.get(STEP)
        if step is not None:
            if scheduler_output.finished_req_ids:
                step.forget(list(scheduler_output.finished_req_ids))
            names = list(self.input_batch.req_ids)
            step.prepare(names, [_row(self.requests, name) for name in names], num_scheduled_tokens.tolist())
        return before(self, scheduler_output, num_scheduled_tokens, *args, **more)

    return _prepare_inputs


def _row(requests: Mapping[str, Any], name: str) -> Any:
    params = requests[name].sampling_params
    extra = None if params is None else params.extra_args
    return None if not extra else extra.get(ARGUMENT)
