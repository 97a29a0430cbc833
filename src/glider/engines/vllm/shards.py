"""What one worker of several has of vLLM's linear layers, and how the experts of a site are split with them.

A layer whose outputs are split sees every token whole: its worker decides as one alone would, and has the rows of B
that belong to its outputs. A layer whose inputs are split sees a part of each token: the workers collect it, decide
on it alike, and each has the columns of A that belong to its part; vLLM sums their outputs with the base's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from glider.layers.bank import Bank
from glider.layers.context import Segment
from glider.layers.kernels import native
from glider.layers.kernels.native import NativeSite
from glider.layers.routed_site import RoutedSite
from glider.routing.base import Decision, Router, Site
from glider.routing.linear import LinearRouter
from glider.routing.methods.base import Base
from glider.shapes import Float, Tensor


@dataclass(frozen=True)
class Span:
    """Features of a site that a worker has: `count` from `first` on, of `whole`."""

    first: int
    count: int
    whole: int

    @property
    def is_whole(self) -> bool:
        return self.count == self.whole

    @property
    def slice(self) -> slice:
        return slice(self.first, self.first + self.count)


@dataclass(frozen=True)
class Place:
    """Where the outputs of a site lie in those that a worker computes for a layer, and which of the site's they are."""

    layer: str
    start: int
    inputs: Span
    outputs: Span

    @property
    def stop(self) -> int:
        return self.start + self.outputs.count


def places_in(name: str, layer: Any, parts: int) -> Iterator[Place]:
    """A place for each of the sites that a layer computes at once; none where it is not known how that is split."""
    from vllm.model_executor.layers import linear  # pyright: ignore[reportMissingImports]

    widths = list(layer.output_partition_sizes) if parts > 1 else [getattr(layer, "output_size_per_partition", 0)]
    if parts == 1 and not widths[0]:
        widths = [layer.output_size]
    if len(widths) != parts:
        return
    inputs, firsts, wholes = Span(0, layer.input_size, layer.input_size), [0] * parts, widths
    if layer.tp_size > 1 and not isinstance(layer, linear.ReplicatedLinear):
        if parts != len(layer.output_partition_sizes):
            return  # one site, of which a worker has several pieces: qkv_proj and gate_up_proj of Phi-3
        rank, kind = layer.tp_rank, type(layer)
        if kind is linear.RowParallelLinear:
            count = layer.input_size_per_partition
            inputs = Span(rank * count, count, layer.input_size)
        elif kind is linear.QKVParallelLinear:
            firsts = [width * (rank // replicas) for width, replicas in zip(widths, _replicas(layer), strict=True)]
            heads = (layer.total_num_heads, layer.total_num_kv_heads, layer.total_num_kv_heads)
            sizes = (layer.head_size, layer.head_size, layer.v_head_size)
            wholes = [count * size for count, size in zip(heads, sizes, strict=True)]
        elif kind in (linear.ColumnParallelLinear, linear.MergedColumnParallelLinear):
            firsts, wholes = [width * rank for width in widths], [width * layer.tp_size for width in widths]
        else:
            return
    start = 0
    for width, first, whole in zip(widths, firsts, wholes, strict=True):
        yield Place(name, start, inputs, Span(first, width, whole))
        start += width


def _replicas(layer: Any) -> tuple[int, int, int]:
    """How many workers have the same heads, of q, k and v."""
    return (1, layer.num_kv_head_replicas, layer.num_kv_head_replicas)


def bank_of(bank: Bank, place: Place) -> Bank:
    """The part of a site's experts that a worker needs."""
    if place.inputs.is_whole and place.outputs.is_whole:
        return bank
    return Bank(bank.A[:, :, place.inputs.slice].contiguous(), bank.B[:, place.outputs.slice], bank.scaling)


class CollectedSite:
    """A site whose inputs are split among the workers: decides on whole tokens, adds what its part of them gives.

    `bank` has the columns of A of this worker's part, `width` is that of a whole token.
    """

    def __init__(self, site: Site, bank: Bank, router: Router, kernel: str | None, width: int):
        self._part = RoutedSite(site, bank, Base(), kernel).eval()  # which is never asked
        self._site, self._router = site, router
        linear = router.linear(site) if isinstance(router, LinearRouter) else None
        self._decider = None
        if linear is not None and native.extension() is not None and self._part.kernel in (None, "native"):
            self._decider = NativeSite.deciding(width, site, linear)

    def add(self, y: torch.Tensor, x: torch.Tensor, segment: Segment) -> torch.Tensor:
        """As `RoutedSite.add`; each worker calls it with the same tokens."""
        if segment.settled is None:
            segment = replace(segment, settled=self._decision(_collected(x), segment))
        return self._part.add(y, x, segment)

    def _decision(self, tokens: Float[Tensor, "T D"], segment: Segment) -> Decision:
        if self._decider is not None and tokens.dtype in native.DTYPES:
            return self._decider.decide(tokens, self._decider.per_token, segment.term, segment.query_of)
        decision = self._router.route(self._site, tokens, segment.term_of(len(tokens)))
        assert isinstance(decision, Decision)
        return decision


def _collected(x: Float[Tensor, "T P"]) -> Float[Tensor, "T D"]:
    """Whole tokens, of which each worker has a part."""
    from vllm.distributed import tensor_model_parallel_all_gather  # pyright: ignore[reportMissingImports]

    return tensor_model_parallel_all_gather(x.contiguous(), dim=-1).contiguous()
