"""The engine: runs requests in token ids, each by its own condition, and tells what comes of them.

It knows nothing of text. `RoutedModel` and the server are the text around it.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from glider.errors import QueryError
from glider.inference.sampler import RequestSettings
from glider.layers.attach import Generation
from glider.layers.trace import Trace
from glider.routing.condition import Condition


@dataclass(frozen=True)
class Reuse:
    """Tokens of a prompt whose keys and values were in the cache already, and those that this request leaves there."""

    cached: int = 0
    stored: int = 0


@dataclass(frozen=True)
class NewToken:
    """A request has one more token."""

    request: str
    token: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()  # tokens and their log-probabilities
    passes: int = 0  # that the request's trace had seen when this token was chosen; 0 without a trace
    reuse: Reuse | None = None  # of the prompt; None where each request computes its own


@dataclass(frozen=True)
class Ended:
    """A request has ended: `stop` by one of its end tokens, `length`, or `cancelled`."""

    request: str
    reason: str
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Failed:
    """A request could not be answered."""

    request: str
    fault: Exception


Event = NewToken | Ended | Failed


@dataclass(frozen=True)
class Can:
    """What an engine can do for this model. `why_not` says why requests cannot join a run."""

    join: bool = True  # a request added while others run is taken up with the next pass
    why_not: str = ""


@dataclass(frozen=True)
class PrefixCache:
    """Tokens of prompts that were looked up in the cache of earlier requests, and those of them that it had."""

    queries: int = 0
    hits: int = 0


class Engine(Protocol):
    """Requests in token ids: added at any time and from any thread, each served by the generation of the pool that was
    current when it was added."""

    @property
    def can(self) -> Can:
        """What it can do."""
        ...

    @property
    def prefix_cache(self) -> PrefixCache:
        """What it did not compute anew, since it was made."""
        ...

    def add(
        self,
        request: str,
        ids: Sequence[int],
        condition: Condition | None,
        settings: RequestSettings,
        trace: Trace | None = None,
        generation: Generation | None = None,
    ) -> None:
        """Answer a prompt; `condition` has one row (None: by its tokens alone), `request` is a name not in use.

        `generation` is the one that the condition was made for, held by the caller; by default the current one.
        """
        ...

    def gather(self) -> AbstractContextManager[None]:
        """Hold back requests that cannot join others until those added inside the block are together."""
        ...

    def cancel(self, request: str) -> None:
        """End a request with the next pass; one that has ended is left alone."""
        ...

    def next_event(self, timeout: float | None = None) -> Event | None:
        """The next event; None after `timeout` seconds without one."""
        ...

    def close(self) -> None:
        """Stop; requests in flight come to nothing."""
        ...


def events(engine: Engine, requests: Sequence[str]) -> Iterator[Event]:
    """Events until all of these requests have ended."""
    open_ = set(requests)
    while open_:
        event = engine.next_event()
        if event is None:
            continue
        if isinstance(event, Ended | Failed):
            open_.discard(event.request)
        yield event


def require_finite(condition: Condition | None) -> None:
    """Raise `QueryError` for a condition whose term would break its request, and those that share its passes."""
    term = None if condition is None else condition.term
    if term is not None and bool((term.isnan() | (term == torch.inf)).any()):
        got = "ones with NaN or infinity"
        raise QueryError("global scores and alpha that are finite, or -inf for an expert left out", got, "Check them.")
