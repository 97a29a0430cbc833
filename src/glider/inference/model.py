"""A base model with a pool attached: generate, stream, score, trace."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch

from glider.errors import QueryError
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import BaseModel
from glider.inference.batching import generate_packed
from glider.inference.likelihood import likelihoods
from glider.inference.prompt_states import prompt_states
from glider.inference.queries import DescribedCondition, Query, ask
from glider.inference.streaming import Piece, PieceStreamer, StopRequested
from glider.instructions.describers import Describer
from glider.layers.attach import Attached
from glider.layers.trace import Trace
from glider.routing.base import Condition, Observer, Router

if TYPE_CHECKING:
    from transformers import ContinuousBatchingConfig

OnPiece = Callable[[Piece], None]


@dataclass(frozen=True)
class Answer:
    """What the model wrote for one query, and what guided it."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str  # "stop": the model ended; "length": max_new_tokens did
    global_scores: dict[str, float]  # by expert; empty for a router without a global term
    alpha: float | None
    usage: dict[str, float]  # mean weight of each expert over tokens and sites; empty unless traced
    description: str | None = None  # what was embedded for the global term
    fault: str | None = None  # why the global term was left out


@dataclass(frozen=True)
class ChoiceScore:
    """How likely a choice is as the answer. Tokens include the end token."""

    choice: str
    log_likelihood: float
    tokens: int

    @property
    def normalised(self) -> float:
        """Log-likelihood per token: what rank classification compares."""
        return self.log_likelihood / self.tokens


class RoutedModel:
    """A base model whose every adapted layer routes every token among the experts of a pool."""

    def __init__(
        self,
        base: BaseModel,
        pool: Pool,
        attached: Attached,
        prompt: PromptFormat,
        describer: Describer | None = None,
        strict: bool = False,
    ):
        self.base, self.pool, self.attached, self.prompt = base, pool, attached, prompt
        self.model, self.tokenizer = base.model, base.tokenizer
        self.describer, self.strict = describer, strict
        # tokens; T5 has no limit
        self.context: int | None = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def router(self) -> Router:
        return self.attached.router

    @property
    def experts(self) -> list[str]:
        """Names of the experts the router chooses among."""
        return [expert.name for expert in self.attached.prepared.experts]

    def detach(self) -> Any:
        """Take the pool off and return the bare transformers model."""
        self.attached.detach()
        return self.model

    def fold(self) -> None:
        """Put a static router's expert into the base weights: the same outputs at the base model's cost."""
        self.attached.fold()

    def condition(self, queries: Sequence["str | Query"]) -> Condition | None:
        """The global term of a batch of queries; None for a router without one."""
        if (term := self.attached.prepared.global_term) is None:
            return None
        identity, asking = self.pool.index.embedder, [_query(query) for query in queries]
        asked = ask(asking, term.scores.needs, identity, self.describer, read=self.read, strict=self.strict)
        return asked.temper(self.router.condition(self.attached.prepared, asked.asked), term.beta)

    def read(self, texts: Sequence[str]) -> torch.Tensor:
        """Early hidden states (B, H) of the bare base model: what the signal `hidden` looks at."""
        with self.attached.bare():
            return prompt_states(self.base, texts)

    def condition_of(self, queries: Sequence["str | Query"], inputs: dict[str, torch.Tensor]) -> Condition | None:
        """`condition`, or for a router that observes the prompt what it makes of a first pass over it."""
        if not isinstance(self.router, Observer):
            return self.condition(queries)
        trace = Trace(self.experts, None, inputs["attention_mask"].cpu().bool())
        with torch.inference_mode(), self.attached.routing(None, trace=trace):
            self.model(**self._forward_inputs(inputs))
        return self.router.observe(trace.mean_scores())

    def _forward_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What a plain forward pass over prompts takes: encoder-decoder models need a decoder's start."""
        if not self.model.config.is_encoder_decoder:
            return inputs
        start = self.model.config.decoder_start_token_id
        rows = len(inputs["input_ids"])
        return {**inputs, "decoder_input_ids": torch.full((rows, 1), start, device=self.model.device)}

    def generate(
        self,
        prompts: Sequence["str | Query"],
        *,
        max_new_tokens: int = 64,
        truncate: bool = False,
        trace: bool = False,
        on_piece: OnPiece | None = None,
        **generation: Any,
    ) -> list[Answer]:
        """Answer a batch that may mix tasks; each prompt has its own global term.

        Greedy unless `generation` (keyword arguments of transformers' `generate`) has `do_sample=True`; one answer for
        each prompt. With `trace` the answers carry the experts' usage; `on_piece` is called with each new piece of text
        (not with beams). Raises `QueryError` for an empty prompt or one beyond the context length (`truncate` keeps its
        end instead).
        """
        answers, _ = self._generate(prompts, max_new_tokens, truncate, trace, on_piece, generation)
        return answers

    def generate_traced(
        self,
        prompts: Sequence["str | Query"],
        *,
        max_new_tokens: int = 64,
        truncate: bool = False,
        on_piece: OnPiece | None = None,
        **generation: Any,
    ) -> tuple[list[Answer], Trace]:
        """As `generate`, with the record of every decision."""
        answers, trace = self._generate(prompts, max_new_tokens, truncate, True, on_piece, generation)
        assert trace is not None
        return answers, trace

    def generate_batch(
        self,
        prompts: Sequence["str | Query"],
        *,
        max_new_tokens: int = 64,
        truncate: bool = False,
        batching: "ContinuousBatchingConfig | None" = None,
        on_answer: Callable[[int, Answer], None] | None = None,
        **generation: Any,
    ) -> list[Answer]:
        """As `generate`, for more prompts than one padded batch should hold: by transformers' continuous batching.

        Prompts of any length share the forward passes, and a prompt comes in when another's answer ends. Greedy answers
        are those of `generate`, each by its prompt's own global term. `batching` says how many requests and tokens
        a pass takes and how large the cache is (default: 32, 512, as large as these prompts need);
        `on_answer(row, answer)` is called as each ends. `generation` may hold do_sample, temperature, top_k, top_p and
        eos_token_id. Decoder-only models; raises `BatchingError` where transformers cannot do it. Attention other than
        `sdpa` is changed on the model for that time: let no other thread use the model then.
        """
        rows = self._rows(prompts, truncate, max_new_tokens)
        ends = self._end_ids(generation.get("eos_token_id"))
        condition = self._condition_of_rows(prompts, rows)
        answers: dict[int, Answer] = {}

        def end(row: int, ids: list[int]) -> None:
            answer = self._answer(row, self._until_end(ids, ends), ends, max_new_tokens, condition, None)
            answers[row] = answer
            if on_answer is not None:
                on_answer(row, answer)

        generate_packed(
            *(self.attached, rows, condition),
            max_new_tokens=max_new_tokens,
            ends=ends,
            generation=generation,
            batching=batching,
            on_end=end,
        )
        return [answers[row] for row in range(len(rows))]

    def _condition_of_rows(self, prompts: Sequence["str | Query"], rows: Sequence[list[int]]) -> Condition | None:
        """`condition_of`; a router that observes the prompts sees a few at a time."""
        if not isinstance(self.router, Observer):
            return self.condition(prompts)
        parts = [self.condition_of(prompts[i : i + 8], self.padded(rows[i : i + 8])) for i in range(0, len(rows), 8)]
        kept = [part for part in parts if part is not None]
        return Condition(torch.cat([one.global_scores for one in kept]), torch.cat([one.alpha for one in kept]))

    @overload
    def stream(self, prompts: "str | Query", **settings: Any) -> Iterator[str]: ...
    @overload
    def stream(self, prompts: Sequence["str | Query"], **settings: Any) -> Iterator[Piece]: ...
    def stream(self, prompts: Any, **settings: Any) -> Iterator[Any]:
        """Yield text as it is written: strings for one prompt, `Piece(row, text)` for a batch of prompts.

        Takes the settings of `generate` (no beams). Leaving the iteration early stops the model.
        """
        single = isinstance(prompts, str | Query)
        batch = [prompts] if single else list(prompts)
        self._encode(batch, settings.get("truncate", False), settings.get("max_new_tokens", 64))  # faults show here
        pieces = self._pieces(batch, settings)
        return (piece.text for piece in pieces) if single else pieces

    def score(self, prompt: "str | Query", choices: Sequence[str], *, truncate: bool = False) -> list[ChoiceScore]:
        """Log-likelihood of each choice as the answer; the prompt is computed once for all of them."""
        return self.score_many([prompt], [choices], truncate=truncate)[0][0]

    def score_many(
        self, prompts: Sequence["str | Query"], choices: Sequence[Sequence[str]], *, truncate: bool = False
    ) -> tuple[list[list[ChoiceScore]], Condition | None]:
        """`score` of several prompts, each with its own choices, as one batch; with the batch's global term.

        Prompts of like length waste little on padding.
        """
        if any(isinstance(texts, str) for texts in choices):
            raise QueryError("a list of choices", "one string", "Write [choice, ...].")
        if not all(choices):
            raise QueryError("at least one choice", "none", "Give the answers to choose from.")
        targets = [[self.prompt.target_ids(self.tokenizer, choice) for choice in texts] for texts in choices]
        inputs = self._encode(prompts, truncate, max(len(ids) for row in targets for ids in row))
        condition = self.condition_of(prompts, inputs)
        found = likelihoods(self.model, self.attached, inputs, targets, condition)
        scores = [
            [ChoiceScore(text, value.total, value.tokens) for text, value in zip(texts, row, strict=True)]
            for texts, row in zip(choices, found, strict=True)
        ]
        return scores, condition

    def trace(self, prompt: "str | Query", *, truncate: bool = False) -> tuple[list[str], Trace]:
        """Route one prompt and return its tokens as text, with the decision for each at every site."""
        inputs = self._encode([prompt], truncate, 0)
        condition = self.condition_of([prompt], inputs)
        trace = Trace(self.experts, condition, inputs["attention_mask"].cpu().bool())
        with torch.inference_mode(), self.attached.routing(condition, trace=trace):
            self.model(**self._forward_inputs(inputs))
        return [self.tokenizer.decode([token]) for token in inputs["input_ids"][0].tolist()], trace

    def _generate(
        self,
        prompts: Sequence["str | Query"],
        max_new_tokens: int,
        truncate: bool,
        traced: bool,
        on_piece: OnPiece | None,
        generation: dict[str, Any],
    ) -> tuple[list[Answer], Trace | None]:
        if generation.get("num_return_sequences", 1) != 1:
            raise QueryError("one answer for each prompt", "num_return_sequences", "Give the prompt several times.")
        inputs = self._encode(prompts, truncate, max_new_tokens)
        condition = self.condition_of(prompts, inputs)
        trace = Trace(self.experts, condition, inputs["attention_mask"].cpu().bool()) if traced else None
        settings: dict[str, Any] = {"do_sample": False, "pad_token_id": self.tokenizer.pad_token_id, **generation}
        ends = self._end_ids(generation.get("eos_token_id"))
        if on_piece is not None:
            settings["streamer"] = PieceStreamer(self.tokenizer, len(prompts), ends, on_piece)
        with torch.inference_mode(), self.attached.routing(condition, trace=trace):
            output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, **settings)
        start = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        written = [self._until_end(row, ends) for row in output[:, start:].tolist()]
        if trace is not None:
            trace.generated = [len(ids) for ids in written]
        return [self._answer(i, ids, ends, max_new_tokens, condition, trace) for i, ids in enumerate(written)], trace

    def _answer(
        self, row: int, ids: list[int], ends: set[int], limit: int, condition: Condition | None, trace: Trace | None
    ) -> Answer:
        values = [] if condition is None else condition.global_scores[row].tolist()
        told = condition.described[row] if isinstance(condition, DescribedCondition) and condition.described else None
        return Answer(
            text=self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            token_ids=tuple(ids),
            finish_reason="stop" if (ids and ids[-1] in ends) or len(ids) < limit else "length",
            global_scores=dict(zip(self.experts, values, strict=False)),  # empty without a global term
            alpha=None if condition is None else condition.alpha[row].item(),
            usage={} if trace is None else trace.usage(row),
            description=told and told.text,
            fault=told and told.fault,
        )

    def _pieces(self, batch: list["str | Query"], settings: dict[str, Any]) -> Iterator[Piece]:
        out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stop = StopRequested()
        settings = {**settings, "stopping_criteria": [stop, *settings.get("stopping_criteria", ())]}

        def run() -> None:
            try:
                self.generate(batch, on_piece=out.put, **settings)
                out.put(None)
            except BaseException as fault:  # handed to the consumer, who raises it
                out.put(fault)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while (item := out.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _encode(self, prompts: Sequence["str | Query"], truncate: bool, new_tokens: int) -> dict[str, torch.Tensor]:
        """Token ids of a batch, padded, with every prompt's length checked."""
        return self.padded(self._rows(prompts, truncate, new_tokens))

    def _rows(self, prompts: Sequence["str | Query"], truncate: bool, new_tokens: int) -> list[list[int]]:
        """Each prompt's token ids, their number checked."""
        if isinstance(prompts, str | Query):
            raise QueryError("a list of prompts", "one prompt", "Write [prompt].")
        if not prompts:
            raise QueryError("at least one prompt", "none", "Give a prompt.")
        rows = []
        for number, query in enumerate(map(_query, prompts), start=1):
            if not query.text.strip():
                raise QueryError("a prompt with text", f"an empty one (prompt {number})", "Write a question.")
            rows.append(self._fit(self.prompt.prompt_ids(self.tokenizer, query.text), truncate, new_tokens, number))
        return rows

    def padded(self, rows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        """Prompts in tokens as a batch: padded on the left for decoder-only models, else on the right."""
        width = max(map(len, rows))
        left = not self.model.config.is_encoder_decoder
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(r)) + r if left else r + [pad] * (width - len(r)) for r in rows])
        mask = torch.tensor(
            [[0] * (width - len(r)) + [1] * len(r) if left else [1] * len(r) + [0] * (width - len(r)) for r in rows]
        )
        return {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}

    def _fit(self, ids: list[int], truncate: bool, new_tokens: int, number: int) -> list[int]:
        config = self.model.config
        if (limit := self.context) is None:
            return ids
        room = limit - (0 if config.is_encoder_decoder else new_tokens)
        if len(ids) <= room:
            return ids
        if not truncate or room < 1:
            raise QueryError(
                f"a prompt of at most {room} tokens (context {limit}, {new_tokens} of it for the answer)",
                f"{len(ids)} tokens (prompt {number})",
                "Shorten it, or give --truncate to keep its end.",
            )
        return ids[-room:]

    def _end_ids(self, wanted: int | Sequence[int] | None = None) -> set[int]:
        """Tokens that end an answer: the caller's, or the model's and the tokenizer's."""
        ends = self.model.generation_config.eos_token_id if wanted is None else wanted
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        own = [self.tokenizer.eos_token_id] if wanted is None and self.tokenizer.eos_token_id is not None else []
        return {*ends, *own}

    def _until_end(self, ids: list[int], ends: set[int]) -> list[int]:
        """A row's answer, up to its end token."""
        for i, token in enumerate(ids):
            if token in ends:
                return ids[: i + 1]
        return ids


def _query(prompt: "str | Query") -> Query:
    return Query(prompt) if isinstance(prompt, str) else prompt
