"""Text on top of the engine: prompts in, answers out as they end."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from glider.errors import QueryError
from glider.inference.answers import Answer
from glider.inference.engine import Ended, Engine, Failed, events
from glider.inference.generation import merged, new_tokens
from glider.inference.packed_engine import PackedEngine
from glider.inference.packing import refusal
from glider.inference.packing_trial import trial
from glider.inference.padded_engine import PaddedEngine
from glider.inference.sampler import RequestSettings, request_processors, try_processors
from glider.inference.streaming import Decoder, Piece
from glider.layers.attach import Generation
from glider.routing.condition import Condition

if TYPE_CHECKING:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    from glider.inference.model import RoutedModel

_SEEDS = 2**63 - 1
_NOT_APPLIED = ("max_time", "token_healing", "return_dict_in_generate", "output_scores", "output_logits")


def open_engine(model: "RoutedModel", batching: "ContinuousBatchingConfig | None", lengths: Sequence[int]) -> Engine:
    """The engine that suits a model: requests share passes where they can, else run in padded batches."""
    reason = refusal(model.attached) or trial(model.attached)
    if reason is None:
        return PackedEngine(model.attached, batching, lengths)
    if reason.fixable:
        raise reason
    return PaddedEngine(model.attached, model.encoder.pad_id, str(reason))


@dataclass(frozen=True)
class EngineSettings:
    """How the prompts of a run are answered: transformers' settings, as far as an engine can apply them.

    `stop` strings end an answer; `seed` is the first prompt's, and each further prompt has the next number.
    """

    config: "GenerationConfig"
    max_new_tokens: int
    ends: frozenset[int]
    processors: tuple[Any, ...] = ()
    stop: tuple[str, ...] = ()
    seed: int | None = None
    start: int | None = None  # of a decoder beside an encoder

    @classmethod
    def of(cls, model: "RoutedModel", max_new_tokens: int | None, settings: Mapping[str, Any]) -> "EngineSettings":
        """Settings completed as transformers' `generate` completes them.

        Raises `QueryError` for settings that an engine cannot apply: beams, several answers, unknown names.
        """
        rest = merged(settings)
        limit = new_tokens(rest.pop("max_new_tokens", None) if max_new_tokens is None else max_new_tokens)
        processors, seed = tuple(rest.pop("logits_processor", None) or ()), rest.pop("seed", None)
        bare: Any = model.model
        fixed = {"max_new_tokens": limit, "do_sample": bool(rest.get("do_sample"))}
        fixed |= {"num_return_sequences": rest.get("num_return_sequences") or 1}  # the base's own may say more
        fixed |= {"return_dict_in_generate": bool(rest.get("return_dict_in_generate"))}
        try:
            config, unknown = bare._prepare_generation_config(None, **{**rest, **fixed})
            bare._prepare_special_tokens(config, True, device=bare.device)
        except (TypeError, ValueError, RuntimeError) as fault:  # PyTorch's, of an id beyond 64 bits
            raise QueryError("settings of transformers' generation", str(fault), "Mend the settings.") from fault
        try_processors(bare, config)
        mode = config.get_generation_mode().value
        refused = sorted(name for name in unknown if name in rest)
        refused += [name for name in _NOT_APPLIED if getattr(config, name, None)]
        if rest.get("max_length"):
            refused.append("max_length")
        if rest.get("use_cache") is False:
            refused.append("use_cache=False")
        if config.num_return_sequences not in (None, 1):
            refused.append("num_return_sequences")
        if config.guidance_scale not in (None, 1):
            refused.append("guidance_scale")
        if mode not in ("greedy_search", "sample"):
            names = ", ".join(sorted(name for name in rest if name != "max_new_tokens"))
            refused.append(f"{mode} ({names or 'of the base: num_beams=1 is another search'})")
        if refused:
            expected = "settings of one answer a prompt, by greedy search or sampling"
            raise QueryError(expected, ", ".join(refused), "Leave them out, or use generate().")
        stop = (config.stop_strings,) if isinstance(config.stop_strings, str) else tuple(config.stop_strings or ())
        ends, start = model.encoder.ends(rest.get("eos_token_id")), _start(bare, config, rest)
        return cls(config, limit, ends, processors, stop, seed, start)

    def request(self, model: Any, ids: Sequence[int], row: int) -> RequestSettings:
        """Those of one prompt in tokens."""
        seed = None
        if self.config.do_sample:
            seed = int(torch.randint(_SEEDS, ())) if self.seed is None else self.seed + row
        return RequestSettings(
            max_new_tokens=self.max_new_tokens,
            ends=self.ends,
            processors=request_processors(model, self.config, ids, self.processors),
            seed=seed,
            start=self.start,
        )


def _start(model: Any, config: "GenerationConfig", settings: Mapping[str, Any]) -> int | None:
    """What the decoder begins with where the caller says so, as transformers reads it."""
    named = any(settings.get(name) is not None for name in ("decoder_start_token_id", "bos_token_id"))
    if not named or not model.config.is_encoder_decoder:
        return None
    return config.bos_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id


class EngineRun:
    """Prompts that an engine answers, with their conditions; rows are numbered from 0."""

    def __init__(self, model: "RoutedModel", engine: Engine, generation: Generation, settings: EngineSettings):
        self._model, self._engine, self._generation, self._settings = model, engine, generation, settings
        self._conditions: dict[str, Condition] = {}
        self._decoders: dict[str, Decoder] = {}

    def add_all(self, rows: Sequence[list[int]], condition: Condition) -> None:
        """Answer prompts in tokens, each by its row of the condition."""
        with self._engine.gather():
            for row, ids in enumerate(rows):
                name = str(row)
                self._conditions[name] = condition.rows([row])
                self._decoders[name] = Decoder(self._model.tokenizer, self._settings.stop)
                request = self._settings.request(self._model.model, ids, row)
                self._engine.add(name, ids, self._conditions[name], request, generation=self._generation)

    def pieces(self) -> Iterator[Piece]:
        """Text as it is written; the last piece of each row says so. Raises the fault of a prompt that failed."""
        for name, text, reason in self._steps():
            if text or reason is not None:
                yield Piece(int(name), text, reason is not None)

    def answers(self) -> Iterator[tuple[int, Answer]]:
        """Each row's answer as it ends; raises the fault of a prompt that failed."""
        for name, _, reason in self._steps():
            if reason is not None:
                decoder = self._decoders[name]
                condition = self._conditions[name]
                answer = Answer.of(decoder.text, decoder.ids, reason, condition, self._generation)
                yield int(name), answer

    def _steps(self) -> Iterator[tuple[str, str, str | None]]:
        """The prompt, its new text, and why the text ended."""
        for event in events(self._engine, list(self._conditions)):
            decoder = self._decoders[event.request]
            if isinstance(event, Failed):
                raise event.fault
            if isinstance(event, Ended):
                yield event.request, decoder.rest(), "stop" if decoder.stopped else event.reason
            elif not decoder.stopped:
                text = decoder.add(event.token)
                if decoder.stopped:
                    self._engine.cancel(event.request)
                yield event.request, text, None
