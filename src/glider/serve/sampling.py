"""From a request's fields to an engine's settings: as transformers applies them, or refused by name."""

import re
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from glider.inference.batches import EngineSettings
from glider.inference.sampler import Processor, RequestSettings, request_processors
from glider.serve.constraint import Constraint
from glider.serve.errors import ApiError
from glider.serve.schemas import MAX_STOPS, Sampling

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel

_SEEDS = 2**63
_ID = "0|[1-9][0-9]{0,17}"  # a token's id, in the one way of writing it: of two ways one bias would be lost


class Draw:
    """How the answers of one request are drawn.

    What a request leaves open is the base's own generation config, or else OpenAI's: temperature 1 over all tokens.
    """

    def __init__(self, model: "RoutedModel", request: Sampling, logprobs: int | None, matcher: Any = None):
        """`matcher` is at the start of the grammar that each answer keeps to."""
        self._model, self._request, self._logprobs, self._matcher = model, request, logprobs, matcher
        defaults = model.model.generation_config
        temperature = request.temperature if request.temperature is not None else defaults.temperature
        self.greedy = temperature == 0
        settings: dict[str, Any] = {}
        penalty = request.repetition_penalty or defaults.repetition_penalty
        settings["repetition_penalty"] = float(1.0 if penalty is None else penalty)
        if not self.greedy:
            settings["do_sample"] = True
            settings["temperature"] = float(1.0 if temperature is None else temperature)
            settings["top_p"] = float(_first(request.top_p, defaults.top_p, 1.0))
            settings["top_k"] = max(0, int(_first(request.top_k, defaults.top_k, 0)))
            settings["min_p"] = _first(request.min_p, defaults.min_p, None) or None
        if len(request.stops) > MAX_STOPS or "" in request.stops:
            raise ApiError(400, f"stop takes up to {MAX_STOPS} strings with text", param="stop", code="invalid_value")
        strange = [token for token in request.stop_token_ids if not 0 <= token < self._size]
        if strange:
            message = f"token ids of 0 to {self._size - 1}, not {str(strange[0])[:40]}"
            raise ApiError(400, message, param="stop_token_ids", code="invalid_value")
        self._bias = _Bias(_bias_ids(request.logit_bias, self._size), model.model.device)
        self._config = EngineSettings.of(model, 1, settings).config
        self._first_seed = secrets.randbelow(_SEEDS) if request.seed is None else request.seed % _SEEDS

    @property
    def _size(self) -> int:
        """Tokens that the model can write."""
        model: Any = self._model.model
        return model.get_output_embeddings().weight.shape[0]

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        model_ends = frozenset[int]() if self._request.ignore_eos else self._model.encoder.ends()
        return model_ends | frozenset(self._request.stop_token_ids)

    def settings(self, ids: Sequence[int], number: int, tokens: int, cache: str) -> RequestSettings:
        """Those of the answer `number` to a prompt, whose keys and values are shared within a cache."""
        model: Any = self._model.model
        start = 1 if model.config.is_encoder_decoder else len(ids)
        processors = (*self._penalties(start), *request_processors(model, self._config, ids))
        if self._matcher is not None:
            constraint = Constraint(self._matcher.deep_copy(), start)
            processors = (constraint.before, *processors, constraint.after)
        return RequestSettings(
            max_new_tokens=tokens,
            ends=self.ends,
            processors=processors,
            seed=None if self.greedy else (self._first_seed + number) % _SEEDS,
            logprobs=self._logprobs,
            cache=cache,
        )

    def _penalties(self, start: int) -> list[Processor]:
        request, processors = self._request, []
        if request.presence_penalty or request.frequency_penalty:
            processors.append(_Penalty(request.presence_penalty, request.frequency_penalty, start))
        if request.logit_bias:
            processors.append(self._bias)
        return processors


def _first(*values: Any) -> Any:
    """The first that is given, or the last."""
    return next((value for value in values if value is not None), values[-1])


def _bias_ids(bias: dict[str, float], size: int) -> dict[int, float]:
    biases = {}
    for key, value in bias.items():
        if re.fullmatch(_ID, key) is None or int(key) >= size:
            message = f"logit_bias takes token ids of 0 to {size - 1}, not {key[:40]!r}"
            raise ApiError(400, message, param="logit_bias", code="invalid_value")
        biases[int(key)] = value
    return biases


class _Penalty:
    """OpenAI's: each token of the answer so far loses presence + frequency * how often it came."""

    def __init__(self, presence: float, frequency: float, start: int):
        self._presence, self._frequency, self._start = presence, frequency, start

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        written = ids[0, self._start :]
        counts = torch.bincount(written, minlength=logits.shape[-1]).to(logits)
        return logits - self._frequency * counts - self._presence * (counts > 0)


class _Bias:
    """Adds to the logits of some tokens."""

    def __init__(self, bias: dict[int, float], device: torch.device):
        self._ids = torch.tensor(list(bias), device=device)
        self._values = torch.tensor(list(bias.values()), device=device)

    def __call__(self, _: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        changed = logits.clone()
        changed[:, self._ids] += self._values
        return changed
