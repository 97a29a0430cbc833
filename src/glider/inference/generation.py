"""Answers by transformers' `generate`, with checked settings; each row's answer is the one it would get alone."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from glider.errors import QueryError
from glider.inference.answers import Answer
from glider.inference.forward import accepts
from glider.inference.queries import Prompt
from glider.inference.row_processors import search_by_rows
from glider.inference.sampler import try_processors
from glider.inference.setting_values import checked_values, plain_value
from glider.inference.sharing import Sharing
from glider.inference.streaming import Decoder, Piece, PieceStreamer, decoded
from glider.layers.attach import Generation
from glider.layers.trace import Trace

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel

NEW_TOKENS = 64  # of an answer, where nobody says how many
_REMEDY = "Run the model in float32 or bfloat16, and check the experts (`glider pool verify`)."
_REFUSED = (
    *("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states"),
    *("max_length", "inputs", "input_ids", "inputs_embeds", "attention_mask", "decoder_input_ids", "tokenizer"),
    *("labels", "synced_gpus", "token_healing"),
)
_ASSISTED = "assisted generation"
_MODES = ("greedy_search", "sample", "beam_search", "beam_sample", "assisted_generation")


def merged(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of a `generation_config` among them, which those beside it override.

    Raises `QueryError` for a `generation_config` of another type, and for values of other types than settings have.
    """
    rest = dict(generation)
    config = rest.pop("generation_config", None)
    if config is not None:
        if not isinstance(config, GenerationConfig):
            raise QueryError("a GenerationConfig", type(config).__name__, "Give transformers' own, or keywords.")
        names = [name for name in config.to_diff_dict() if name != "transformers_version"]
        rest = {**{name: getattr(config, name) for name in names}, **rest}
    rest = checked_values(rest)
    for name in ("logits_processor", "stopping_criteria"):
        if strange := [one for one in rest.get(name) or () if not callable(one)]:
            raise QueryError(f"a list of functions as {name}", f"{strange[0]!r} in it"[:100], "Leave it out.")
    return rest


def new_tokens(count: Any) -> int:
    """The longest answer in tokens; raises `QueryError` unless it is a number above 0."""
    count = NEW_TOKENS if count is None else plain_value(count)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise QueryError("max_new_tokens of at least 1", repr(count), "Give a whole number.")
    return count


@dataclass(frozen=True)
class GenerateSettings:
    """Keyword arguments of transformers' `generate` for one answer per prompt."""

    arguments: dict[str, Any]
    max_new_tokens: int
    ends: frozenset[int]
    stop: tuple[str, ...]
    config: GenerationConfig  # with the base's own settings and transformers' defaults
    alone: str | None = None  # what lets one prompt be answered at a time

    @classmethod
    def of(cls, model: "RoutedModel", max_new_tokens: int | None, generation: Mapping[str, Any]) -> "GenerateSettings":
        """Settings as given; greedy unless `do_sample` says otherwise.

        Raises `QueryError` for settings that give no text or several texts for a prompt, and for unknown names.
        """
        rest = merged(generation)
        rest = {name: value for name, value in rest.items() if name != "tokenizer"}  # it is the model's own
        limit = new_tokens(rest.pop("max_new_tokens", None) if max_new_tokens is None else max_new_tokens)
        if rest.pop("num_return_sequences", 1) not in (None, 1):
            raise QueryError("one answer for each prompt", "num_return_sequences", "Give the prompt several times.")
        known = {*inspect.signature(model.model.generate).parameters, *vars(GenerationConfig())} - {"kwargs"}
        refused = [name for name in _REFUSED if rest.get(name) is not None and rest[name] is not False]
        refused += [name for name in rest if name not in known and not _is_switch(model.model, name, rest[name])]
        if refused:
            expected = "settings of one text for each prompt (max_new_tokens for its length)"
            raise QueryError(expected, ", ".join(refused), "Leave them out, or use model.model.generate().")
        rest = {name: value for name, value in rest.items() if name not in _REFUSED}
        arguments = {"pad_token_id": model.encoder.pad_id, **rest, "num_return_sequences": 1}
        arguments |= {"do_sample": bool(rest.get("do_sample")), "return_dict_in_generate": False}
        config, alone = _checked(model.model, {"max_new_tokens": limit, **arguments})
        stop = config.stop_strings or ()  # the caller's, or the base's own
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        arguments["stop_strings"] = None  # transformers finds them in the prompt's end, too; here `_Ending` does
        return cls(arguments, limit, model.encoder.ends(rest.get("eos_token_id")), stop, config, alone)

    @property
    def cached(self) -> bool:
        """Whether keys and values are kept."""
        return self.config.use_cache is not False

    @property
    def pieces(self) -> int | None:
        """Tokens of a prompt that a pass takes; None where one takes them all."""
        return self.config.prefill_chunk_size

    @property
    def guided(self) -> bool:
        """Whether each token takes a second pass, without the prompt."""
        return self.config.guidance_scale not in (None, 1)

    def require_traceable(self) -> None:
        """Raise `QueryError` for passes over tokens that are neither the prompt's nor the answer's."""
        got = "guidance_scale, for which tokens pass without the prompt" if self.guided else None
        if self.alone == _ASSISTED:
            got = f"{_ASSISTED}, where guesses pass that no answer keeps"
        if got is not None:
            raise QueryError("a trace of passes over the prompt and its answer", got, "Leave it out, or the trace.")


def _is_switch(model: Any, name: str, value: Any) -> bool:
    """Whether a model's pass takes this by name, as what holds of every prompt: inputs (places, a cache, states of an
    encoder) are of one batch, and prompts are put into batches here."""
    return accepts(model, name) and (value is None or isinstance(value, bool | int | float | str))


def _checked(model: Any, arguments: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Settings as transformers completes them, and which of them takes prompts one at a time.

    Raises `QueryError` for settings that transformers refuses.
    """
    beside = {"logits_processor", "stopping_criteria", "streamer", "assistant_model", "custom_generate"}
    plain = {name: value for name, value in arguments.items() if name not in beside}
    try:
        config, _ = model._prepare_generation_config(None, **plain)
        model._prepare_special_tokens(config, True, device=model.device)
        mode = config.get_generation_mode(arguments.get("assistant_model")).value
    except (TypeError, ValueError, RuntimeError, AttributeError) as fault:  # RuntimeError: a token beyond int64
        raise QueryError("settings of transformers' generation", str(fault)[:300], "Mend the settings.") from fault
    try_processors(model, config)
    code = arguments.get("custom_generate")
    if mode not in _MODES or isinstance(code, str):
        expected, got = "a search that transformers has itself", mode if code is None else f"custom_generate={code!r}"
        raise QueryError(expected, got, "Leave its settings out: no foreign code runs.")
    if model.config.is_encoder_decoder:
        _require_for_an_encoder(config)
    if mode == "assisted_generation":
        return config, _ASSISTED
    return config, "a TextStreamer" if isinstance(arguments.get("streamer"), TextStreamer) else None


def _require_for_an_encoder(config: GenerationConfig) -> None:
    """Raise `QueryError` for settings that transformers carries out wrongly for a decoder beside an encoder."""
    wrong = []
    if config.guidance_scale not in (None, 1):
        wrong.append("guidance_scale, which gives the encoder the answer's tokens")
    if config.prefill_chunk_size is not None:
        wrong.append("prefill_chunk_size, which cuts the mask of the encoder's tokens")
    if wrong:
        raise QueryError("settings that suit a decoder beside an encoder", "; ".join(wrong), "Leave them out.")


OnPiece = Callable[[Piece], None]
Row = tuple[int, ...]  # tokens


def generate_rows(
    model: "RoutedModel",
    prompts: Sequence[Prompt],
    rows: Sequence[list[int]],
    settings: GenerateSettings,
    held: Generation,
    *,
    traced: bool,
    on_piece: OnPiece | None,
) -> tuple[list[Answer], Trace | None]:
    """Answers to prompts given as tokens, in batches that change none of the answers.

    Where padding would change the model's outputs, only prompts of one length run together; a trace is refused
    (`QueryError`) if that makes several batches.
    """
    if settings.alone is not None and len(rows) > 1:
        remedy = "Ask them one by one, or give on_piece= in place of a streamer."
        raise QueryError(f"one prompt for {settings.alone}", f"{len(rows)}", remedy)
    if traced:
        settings.require_traceable()
    answers: dict[int, Answer] = {}
    groups, trace = _groups(model, rows, settings.max_new_tokens), None
    if traced and len(groups) > 1:
        got = f"{len(rows)} of unlike lengths, and padding changes what {type(model.model).__name__} gives"
        raise QueryError("a batch of prompts of one length, to be traced", got, "Trace the prompts one by one.")
    for group in groups:
        listener = None if on_piece is None else _numbered(on_piece, group)
        part = [rows[i] for i in group]
        group_answers, trace = _generate(model, [prompts[i] for i in group], part, settings, held, traced, listener)
        answers |= dict(zip(group, group_answers, strict=True))
    return [answers[i] for i in range(len(rows))], trace


def _groups(model: "RoutedModel", rows: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
    """Numbers of rows that may run as one batch: tried as far as the answers may go."""
    lengths = sorted({len(row) for row in rows})
    longest = lengths[-1] if model.model.config.is_encoder_decoder else lengths[-1] + new_tokens
    if len(lengths) == 1 or Sharing(model.model, model.attached.bare).allows("generation", longest):
        return [list(range(len(rows)))]
    return [[i for i, row in enumerate(rows) if len(row) == length] for length in lengths]


def _numbered(on_piece: OnPiece, group: Sequence[int]) -> OnPiece:
    return lambda piece: on_piece(replace(piece, row=group[piece.row]))


def _generate(
    model: "RoutedModel",
    prompts: Sequence[Prompt],
    rows: Sequence[list[int]],
    settings: GenerateSettings,
    held: Generation,
    traced: bool,
    on_piece: OnPiece | None,
) -> tuple[list[Answer], Trace | None]:
    """One batch."""
    inputs, arguments = model.encoder.batch(rows), dict(settings.arguments)
    if on_piece is not None:
        if arguments.get("streamer") is not None:
            raise QueryError("on_piece or a streamer", "both", "Give one of them.")
        decoders = [Decoder(model.tokenizer, settings.stop) for _ in rows]
        arguments["streamer"] = PieceStreamer(decoders, settings.ends, on_piece)
    arguments |= _processing(model.model, rows, arguments)
    start = 1 if model.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    ending = _Ending(
        arguments.get("stopping_criteria") or (), Decoder(model.tokenizer, settings.stop), len(rows), start
    )
    if ending.criteria or settings.stop:
        arguments["stopping_criteria"] = StoppingCriteriaList([ending])
    condition = model._condition_of(prompts, inputs, held)
    mask = inputs["attention_mask"].cpu().bool()
    trace = Trace(held.names, condition, mask, pieces=settings.pieces) if traced else None
    with torch.inference_mode(), model.attached.routing(condition, recorder=trace, generation=held):
        try:
            output = model.model.generate(**inputs, max_new_tokens=settings.max_new_tokens, **arguments)
        except ImportError as fault:  # of a cache or a watermark that a package of its own makes
            raise QueryError("settings whose packages are installed", str(fault), "Install it.") from fault
        except (TypeError, ValueError) as fault:
            if not _is_of_generation(fault):
                raise
            got = " ".join(str(fault).split())[:300]
            raise QueryError("settings that transformers' generation carries out", got, "Mend them.") from fault
    lengths = [ending.length(number, row) for number, row in enumerate(output.tolist())]
    written = [
        decoded(model.tokenizer, row[start:length], settings.ends, settings.stop)
        for row, length in zip(output.tolist(), lengths, strict=True)
    ]
    if trace is not None:
        trace.generated = [len(one.ids) for one in written]
    answers = []
    for row, (one, length) in enumerate(zip(written, lengths, strict=True)):
        ended = one.stopped or length is not None or (one.ids[-1:] and one.ids[-1] in settings.ends)
        reason = "stop" if ended else "length"
        usage = {} if trace is None else trace.usage(row)
        answers.append(Answer.of(one.text, one.ids, reason, condition.rows([row]), held, usage))
    return answers, trace


def _processing(model: Any, rows: Sequence[Sequence[int]], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's processors with a watch over logits, and a search that leaves padding out of what settings read."""
    processors = [FiniteLogits(), *(arguments.get("logits_processor") or ())]
    changed: dict[str, Any] = {"logits_processor": LogitsProcessorList(processors)}
    streamer = arguments.get("streamer")
    beams = (arguments.get("num_beams") or model.generation_config.num_beams or 1) > 1  # transformers refuses both
    if len(set(map(len, rows))) > 1 and arguments.get("custom_generate") is None and not (beams and streamer):
        changed["custom_generate"] = search_by_rows(rows, processors, streamer)
    return changed


def _is_of_generation(fault: BaseException) -> bool:
    """Whether transformers' generation itself raised it, and not the model or a function of the caller's."""
    place = fault.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_globals.get("__name__", "").startswith("transformers.generation.")


class FiniteLogits(LogitsProcessor):
    """Raises `QueryError` for logits that mean nothing: NaN, or infinity in all places or above."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        require_finite_logits(scores)
        return scores


def require_finite_logits(logits: torch.Tensor) -> None:
    """Raise `QueryError` for logits (B, V) that mean nothing."""
    highest = logits.amax(dim=-1)  # NaN where one is
    if not bool(highest.isfinite().all()):
        raise QueryError("finite logits", "ones that are not (an overflow, or weights of NaN)", _REMEDY)


class _Ending(StoppingCriteria):
    """Ends a row by a stop string in its answer, or by the caller's criteria: later tokens of a batch are padding.

    Beams change places and are known by their tokens. Several tokens may come at once.
    """

    def __init__(self, criteria: Sequence[Any], empty: Decoder, prompts: int, start: int):
        self.criteria, self._empty, self._start = list(criteria), empty, start
        self._seen = 0  # tokens of a sequence at the last step, its prompt's among them
        self._decoders: dict[Row, Decoder] = {}  # by the sequences of that step
        self._lengths: list[int | None] = [None] * prompts  # of rows when they met a criterion; of beams:
        self._ended: set[Row] = set()  # the sequences that met one

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> Any:
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for criterion in self.criteria:
            ended = ended | torch.as_tensor(criterion(input_ids, scores, **more), device=input_ids.device)
        rows = [tuple(row) for row in input_ids.tolist()]
        beams = len(rows) > len(self._lengths)
        for number in ended.nonzero()[:, 0].tolist():
            if beams:
                self._ended.add(rows[number])
            elif self._lengths[number] is None:
                self._lengths[number] = len(rows[number])
        if self._empty.stops:
            self._decoders = {row: self._read(row) for row in set(rows)}
            stopped = [self._decoders[row].stopped for row in rows]
            ended = ended | torch.tensor(stopped, device=input_ids.device)
        self._seen = len(rows[0])
        return ended

    def length(self, number: int, row: Sequence[int]) -> int | None:
        """Tokens of a row's sequence when it met one of the caller's criteria."""
        ends = sorted({len(ended) for ended in self._ended})
        return next((n for n in ends if tuple(row[:n]) in self._ended), self._lengths[number])

    def _read(self, row: Row) -> Decoder:
        """The answer of a row, read on from where it was at the last step."""
        decoder = copy(self._decoders.get(row[: self._seen], self._empty))
        decoder.ids = list(decoder.ids)
        for token in row[self._start + len(decoder.ids) :] if not decoder.stopped else ():
            decoder.add(token)
        return decoder
