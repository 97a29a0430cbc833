"""The engine: runs requests in token ids, each by its own condition, and tells what comes of them.

It knows nothing of text. `RoutedModel` and the server are the text around it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import LogitsProcessorList

from glider.errors import QueryError
from glider.layers.attach import Generation
from glider.layers.trace import Trace
from glider.routing.condition import Condition

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Changes the logits (1, V) of the next token, given the tokens so far (1, S), as transformers' processors do.

One that raises a `GliderError` fails its request, and no other.
"""


@dataclass(frozen=True)
class RequestSettings:
    """How one request is answered.

    `processors` change its logits in turn. `seed` draws the next token by a generator of the request's own; None takes
    the likeliest. `logprobs` tells the log-probability of each token under the model's own distribution, and those of
    as many of the likeliest.
    """

    max_new_tokens: int
    ends: frozenset[int] = frozenset()
    processors: tuple[Processor, ...] = ()
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class NewToken:
    """A request has one more token."""

    request: str
    token: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()  # tokens and their log-probabilities
    passes: int = 0  # that the request's trace had seen when this token was chosen; 0 without a trace


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


def not_finite() -> QueryError:
    """What is told of logits that mean nothing."""
    remedy = "Run the model in float32 or bfloat16, and check the experts (`glider pool verify`)."
    return QueryError("finite logits", "ones that are not (an overflow, or weights of NaN)", remedy)


@dataclass
class Sampler:
    """Chooses the next token of a request, by its settings."""

    settings: RequestSettings
    device: torch.device
    _generator: torch.Generator | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.settings.seed is not None:
            self._generator = torch.Generator(self.device).manual_seed(self.settings.seed)

    @property
    def plain(self) -> bool:
        """Whether it takes the likeliest token of the logits as they are, and tells nothing of the others."""
        settings = self.settings
        return not settings.processors and settings.seed is None and settings.logprobs is None

    def next(self, ids: Sequence[int], logits: torch.Tensor) -> tuple[int, float | None, tuple[tuple[int, float], ...]]:
        """The token after `ids` for its float32 logits (V,), its log-probability, and the likeliest tokens'."""
        scores = logits[None]
        if self.settings.processors:
            so_far = torch.tensor([list(ids)], device=logits.device)
            for process in self.settings.processors:
                scores = process(so_far, scores)
        if self._generator is None:
            token = int(scores[0].argmax())
        else:
            chances = scores[0].softmax(dim=-1)
            token = int(torch.multinomial(chances, 1, generator=self._generator))
        if self.settings.logprobs is None:
            return token, None, ()
        logprobs = logits.log_softmax(dim=-1)
        best = logprobs.topk(min(self.settings.logprobs, len(logprobs)))
        likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return token, float(logprobs[token]), likeliest


def request_processors(
    model: Any, settings: Any, prompt: Sequence[int], extra: Sequence[Any] = ()
) -> tuple[Processor, ...]:
    """transformers' own processors for generation settings (a `GenerationConfig`), for one prompt, and the caller's.

    Raises `QueryError` for settings that transformers refuses.
    """
    ids = torch.tensor([list(prompt)], device=model.device)
    length = 1 if model.config.is_encoder_decoder else len(prompt)  # of what the answer continues
    more = LogitsProcessorList(extra)
    if settings.forced_eos_token_id is not None:  # of the last token, which `generate` tells by the longest length
        settings = copy.copy(settings)
        settings.max_length = length + settings.max_new_tokens
    try:
        return tuple(model._get_logits_processor(settings, length, encoder_input_ids=ids, logits_processor=more))
    except (TypeError, ValueError) as fault:
        raise QueryError("settings of transformers' generation", str(fault), "Mend the settings.") from fault
