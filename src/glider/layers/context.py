"""The batch in flight, as the routed layers of one model see it: a value that the caller owns."""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from glider.errors import QueryError, RouterError
from glider.layers.sequences import Sequences
from glider.layers.shared_input import SharedInput
from glider.layers.trace import Recorder
from glider.routing.base import Decision
from glider.routing.condition import Condition
from glider.shapes import Float, Int, Tensor

_REMEDY = "Pass one query index per token."


@dataclass(frozen=True)
class Part:
    """Queries of a batch that are served by one generation of the pool, and their condition.

    Without a condition (None) every token is routed by its own scores alone, whatever the number of queries.
    """

    generation: int
    condition: Condition | None

    def __len__(self) -> int:
        return 1 if self.condition is None else len(self.condition)


@dataclass(frozen=True)
class Segment:
    """Tokens of a call that are treated in one way: routed, or by experts that are settled.

    `index` are their numbers among the call's tokens, None for all of them. Of routed ones, `term` (B, E) is the global
    term of the part's queries and `query_of` each token's row of it; without `query_of` the tokens of a query stand
    together, the same number for each.
    """

    generation: int
    index: Int[Tensor, " N"] | None = None
    term: Float[Tensor, "B E"] | None = None
    query_of: Int[Tensor, " N"] | None = None
    settled: Decision | None = None
    sequence_of: Int[Tensor, " N"] | None = None  # for a router that decides a prompt's tokens together

    def term_of(self, tokens: int) -> Float[Tensor, "N E"] | None:
        """The global term of each of its tokens."""
        if self.term is None:
            return None
        if self.query_of is not None:
            return self.term[self.query_of]
        return self.term if tokens == len(self.term) else self.term.repeat_interleave(tokens // len(self.term), dim=0)


@dataclass(frozen=True)
class Batch:
    """The queries in flight: their parts, which query each token belongs to, and where to record decisions.

    Queries are numbered through the parts. Without `token_to_query`, tokens are row-major and rows of one query stand
    together: so they do in a batch, in its beams and in several sequences returned for one prompt.
    """

    parts: tuple[Part, ...]
    token_to_query: Int[Tensor, " T"] | None = None
    recorder: Recorder | None = None
    strangers: int = field(init=False, default=0)  # its queries, where the base alone answers every one of them
    _segments: dict[tuple, tuple[Segment, ...]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        conditions = [part.condition for part in self.parts]
        bare = all(one is not None and one.bare is not None and bool(one.bare.all()) for one in conditions)
        object.__setattr__(self, "strangers", self.queries if bare and self.recorder is None else 0)

    @classmethod
    def of(
        cls,
        condition: Condition | None,
        token_to_query: Int[Tensor, " T"] | None = None,
        recorder: Recorder | None = None,
        generation: int = 0,
    ) -> "Batch":
        """Queries of one generation."""
        return cls((Part(generation, condition),), token_to_query, recorder)

    @property
    def queries(self) -> int:
        return sum(map(len, self.parts))

    def segments(self, tokens: int, rows: int | None, device: torch.device) -> tuple[Segment, ...]:
        """How to treat the tokens of a call, found once for all sites that see as many.

        Raises `QueryError` where the queries do not fit this many tokens in this many rows.
        """
        key = (tokens, rows, device)
        known = self._segments.get(key)
        if known is None:
            self._check(tokens, rows)
            if any(_learns(part.condition) for part in self.parts):
                return self._treat(tokens, device)  # what has a gradient belongs to one call
            with torch.inference_mode(False), torch.no_grad():  # whoever comes next may be in another mode
                known = self._segments[key] = self._treat(tokens, device)
        return known

    def _check(self, tokens: int, rows: int | None) -> None:
        queries = self.queries
        if self.token_to_query is not None:
            mapped = self.token_to_query
            if len(mapped) != tokens:
                raise QueryError(f"a token-to-query map of {tokens} tokens", f"{len(mapped)}", _REMEDY)
            if mapped.is_cpu and tokens and not 0 <= int(mapped.min()) <= int(mapped.max()) < queries:
                got = f"one to {int(mapped.min())} to {int(mapped.max())}"
                raise QueryError(f"a token-to-query map to {queries} queries", got, _REMEDY)
        elif any(part.condition is not None for part in self.parts) and (
            tokens % queries or (rows is not None and rows % queries)
        ):
            raise QueryError(
                f"rows for {queries} queries",
                f"{tokens} tokens{'' if rows is None else f' in {rows} rows'}, which do not divide among them",
                "Give a condition for this batch, or a token-to-query map.",
            )

    def _treat(self, tokens: int, device: torch.device) -> tuple[Segment, ...]:
        only = self.parts[0]
        condition = only.condition
        if len(self.parts) == 1 and (condition is None or condition.all_routed):
            if condition is None or condition.term is None:
                return (Segment(only.generation),)
            mapped = None if self.token_to_query is None else self.token_to_query.long().to(device).contiguous()
            return (Segment(only.generation, None, _term_on(condition, device), mapped),)
        alike = self._alike(tokens, device)
        return self._divided(tokens, device) if alike is None else alike

    def _alike(self, tokens: int, device: torch.device) -> tuple[Segment, ...] | None:
        """Segments of a batch whose queries are all strangers, or all settled; None for others."""
        only = self.parts[0]
        condition = only.condition
        if len(self.parts) > 1 or condition is None or not tokens:
            return None
        bare = condition.bare_rows
        if bool(bare.all()):
            return ()
        if condition.settled is None or not bool((condition.settled.rows & ~bare).all()):
            return None
        parts = (condition.settled.experts, condition.settled.weights)
        if self.token_to_query is None:
            experts, weights = (part.repeat_interleave(tokens // self.queries, dim=0) for part in parts)
        else:
            experts, weights = (part[self.token_to_query.long().cpu()] for part in parts)
        return (Segment(only.generation, settled=Decision(experts.to(device), weights.to(device))),)

    def _divided(self, tokens: int, device: torch.device) -> tuple[Segment, ...]:
        """Segments of a batch whose queries are not all treated alike."""
        if self.token_to_query is None:
            query_of = torch.arange(self.queries).repeat_interleave(tokens // self.queries)
        else:
            query_of = self.token_to_query.long().cpu()
        segments, start = [], 0
        for part in self.parts:
            row_of = query_of - start  # in the part's condition
            mine = (row_of >= 0) & (row_of < len(part))
            start += len(part)
            condition = part.condition or Condition.local(1)
            routed = mine.clone()
            routed[mine] = condition.routed[row_of[mine]]
            if bool(routed.any()):
                index, term = routed.nonzero()[:, 0], condition.term
                segments.append(
                    Segment(
                        part.generation,
                        index.to(device),
                        None if term is None else _term_on(condition, device),
                        None if term is None else row_of[index].to(device),
                    )
                )
            if condition.settled is None:
                continue
            settled = mine.clone()
            settled[mine] = (condition.settled.rows & ~condition.bare_rows)[row_of[mine]]
            if bool(settled.any()):
                index = settled.nonzero()[:, 0]
                at = row_of[index]
                experts, weights = condition.settled.experts[at].to(device), condition.settled.weights[at].to(device)
                segments.append(Segment(part.generation, index.to(device), settled=Decision(experts, weights)))
        every = torch.arange(tokens)
        return tuple(
            replace(one, index=None)
            if one.index is not None and len(one.index) == tokens and torch.equal(one.index.cpu(), every)
            else one
            for one in segments
        )


def _term_on(condition: Condition, device: torch.device) -> Float[Tensor, "B E"]:
    term = condition.term
    assert term is not None
    return term.float().to(device).contiguous()


def _learns(condition: Condition | None) -> bool:
    tensors = () if condition is None else (condition.global_scores, condition.alpha)
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class InFlight(threading.local):
    """What one thread has in flight: its batch, or the generation that serves its calls without one; its passes, and
    the input that a layer saw last."""

    batch: Batch | None = None
    generation: int | None = None
    passes: tuple[Sequences, ...] = ()
    shared: SharedInput | None = None


class RoutingContext:
    """The batch in flight in each thread; two threads may use one model with different queries.

    Calls outside any batch are served by the `current` generation, or the one that their thread holds, by the tokens'
    own scores, with a warning where the router has a global term (`expects_query`).
    """

    def __init__(self) -> None:
        self.current = 0
        self.expects_query = False
        self.here = InFlight()

    def __reduce_ex__(self, protocol: Any) -> Any:
        expected, got = "a bare model to copy or to pickle", "one with a pool attached"
        raise RouterError(expected, got, "Call detach() first, or load it anew.")

    @property
    def batch(self) -> Batch | None:
        """This thread's."""
        return self.here.batch

    @property
    def serving(self) -> int:
        """The generation that serves this thread's calls outside any batch."""
        return self.current if self.here.generation is None else self.here.generation

    @property
    def sequences(self) -> Sequences | None:
        """The sequences of this thread's pass; None where nothing watches or no pass runs."""
        passes = self.here.passes
        return passes[-1] if passes else None

    def enter_pass(self, sequences: Sequences) -> None:
        """A pass of this thread begins, within another one or by itself."""
        self.here.passes = (*self.here.passes, sequences)

    def leave_pass(self) -> None:
        """The pass that began last has ended."""
        self.here.passes = self.here.passes[:-1]

    @contextmanager
    def use(self, batch: Batch) -> Iterator[None]:
        """Make `batch` the one in flight inside the block."""
        here = self.here
        before, here.batch = here.batch, batch
        try:
            yield
        finally:
            here.batch, here.shared = before, None

    def serve(self, generation: int, expects_query: bool) -> None:
        """Serve calls outside any batch by this generation from now on."""
        self.current, self.expects_query = generation, expects_query

    def segments(self, tokens: int, rows: int | None, device: torch.device) -> Sequence[Segment]:
        """How to treat the tokens of a call of this thread."""
        batch = self.batch
        if batch is not None:
            return batch.segments(tokens, rows, device)
        if self.expects_query:
            warnings.warn(
                "no query is set: routing by the local term alone. Use RoutedModel's methods, or wrap the call in "
                "`with attached.routing(condition)`.",
                stacklevel=4,
            )
        return (Segment(self.serving),)
