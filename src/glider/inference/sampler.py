"""How a request's next token is chosen: its settings, and the sampler that follows them."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessorList, UnbatchedClassifierFreeGuidanceLogitsProcessor

from glider.errors import QueryError, first_line

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Changes the logits (1, V) of the next token, given the tokens so far (1, S), as transformers' processors do.

One that raises a `GliderError` fails its request, and no other.
"""


@dataclass(frozen=True)
class RequestSettings:
    """How one request is answered.

    `processors` change its logits in turn. `seed` draws the next token by a generator of the request's own; None takes
    the likeliest. `logprobs` tells the log-probability of each token under the model's own distribution, and those of
    as many of the likeliest. Keys and values of prompts are shared among requests of one `cache` alone. `start` is
    what a decoder beside an encoder begins with; None is the base's own.
    """

    max_new_tokens: int
    ends: frozenset[int] = frozenset()
    processors: tuple[Processor, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    cache: str = ""
    start: int | None = None


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
            if bool(scores.isnan().any()) or not bool((scores > -torch.inf).any()):
                raise QueryError("settings that leave a token to write", "none left, or NaN", "Mend the settings.")
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


def try_processors(model: Any, settings: Any) -> None:
    """Raise `QueryError` for generation settings whose processors transformers refuses, when made or when used."""
    processors = request_processors(model, settings, [0])
    head = model.get_output_embeddings()
    vocabulary = model.config.get_text_config().vocab_size if head is None else head.weight.shape[0]
    for name in ("forced_bos_token_id", "forced_eos_token_id"):  # of the first and of the last step alone
        tokens = getattr(settings, name) or ()
        if any(token >= vocabulary for token in (tokens if isinstance(tokens, list | tuple) else [tokens])):
            raise QueryError(f"{name} below {vocabulary}, the base's tokens", str(tokens), "Mend the settings.")
    ids, scores = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, vocabulary)
    for process in processors:
        if isinstance(process, UnbatchedClassifierFreeGuidanceLogitsProcessor):
            continue  # it runs the model
        try:
            scores = process(ids.to(model.device), scores.to(model.device))
        except (TypeError, ValueError, IndexError, RuntimeError) as fault:
            got = first_line(fault)[:200]
            raise QueryError("settings of transformers' generation", got, "Mend the settings.") from fault
