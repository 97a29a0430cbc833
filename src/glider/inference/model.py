"""A base model with a pool attached: generate, stream, score, trace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import torch

from glider.errors import QueryError, RouterError
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.answers import Answer, ChoiceScore
from glider.inference.base_model import BaseModel, require_target
from glider.inference.batches import EngineRun, EngineSettings, open_engine
from glider.inference.generation import GenerateSettings, OnPiece, generate_rows
from glider.inference.input_conditions import InputConditions
from glider.inference.likelihood import likelihoods
from glider.inference.padded_engine import PaddedEngine
from glider.inference.prompt_states import prompt_states
from glider.inference.prompts import PromptEncoder
from glider.inference.queries import Message, Prompt, Query, QueryReader, is_one, listed
from glider.inference.setting_values import require_function
from glider.inference.streaming import Piece
from glider.inference.support import require_support
from glider.instructions.describers import Describer
from glider.layers.attach import Attached, Generation, Storage, attach
from glider.layers.trace import Trace
from glider.routing.base import Observer, Router
from glider.routing.condition import Condition
from glider.routing.preparation import prepare, require_router

if TYPE_CHECKING:
    from transformers import ContinuousBatchingConfig

    from glider.inference.engine import Engine

_OBSERVED = 8  # prompts that a router observes at once


class RoutedModel:
    """A base model whose every adapted layer routes every token among the experts of a pool. Made by `glider.load`.

    Arguments:
        base: The base model, its tokenizer and its identity.
        pool: The opened pool, a snapshot.
        attached: What `glider.attach` gave for `base.model`.
        prompt: The form in which prompts are put to the model.
        describer: Writes the descriptions of queries that come without, for the signal `instruction`.
        strict: Whether a query that cannot be described is an error; otherwise it goes on by its local term.
        storage: How `reload` and `set_router` hold and compute experts; by default as they are now.

    Raises: methods raise `QueryError` for invalid prompts and for logits that are not finite, and `RouterError`
    after `detach()` and where the router cannot do what is asked.
    """

    def __init__(
        self,
        base: BaseModel,
        pool: Pool,
        attached: Attached,
        prompt: PromptFormat,
        describer: Describer | None = None,
        strict: bool = False,
        storage: Storage | None = None,
    ):
        self.base, self.pool, self.attached = base, pool, attached
        self.model, self.tokenizer = base.model, base.tokenizer
        self.encoder = PromptEncoder(prompt, base.tokenizer, base.model)
        self.describer, self.strict = describer, strict
        self._storage = storage or Storage()
        InputConditions(self).install()

    @property
    def prompt(self) -> PromptFormat:
        """How prompts and answers are written."""
        return self.encoder.prompt

    def __reduce_ex__(self, protocol: Any) -> Any:
        expected, got = "a bare model to copy or to pickle", "a routed one"
        raise RouterError(expected, got, "Load it anew (glider.load), or detach() and copy the base.")

    @property
    def device(self) -> torch.device:
        """Where the base model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The base model's arithmetic."""
        return self.model.dtype

    def to(self, *where: Any, **settings: Any) -> "RoutedModel":
        """Move the base model to a device or dtype, as torch does, and attach the experts there anew.

        Waits for the queries in flight. Raises `RouterError` where an expert is folded, or inside a `routing` block.
        """
        generation = self.attached.generation
        if self.attached.folded:
            raise RouterError("experts beside the base's weights", "folded ones", "Call unfold() first.")
        require_target(*where, **settings)
        self.attached.detach()
        try:
            self.model.to(*where, **settings)
        finally:
            self.attached = attach(self.model, self.pool, generation.router, self._storage, generation.prepared)
            InputConditions(self).install()
        return self

    @property
    def router(self) -> Router:
        """The router that selects the experts."""
        return self.attached.router

    @property
    def experts(self) -> list[str]:
        """Names of the experts the router chooses among."""
        return self.attached.generation.names

    def detach(self) -> Any:
        """Remove the pool once the queries in flight have ended, and return the bare transformers model."""
        self.attached.detach()
        return self.model

    def fold(self) -> None:
        """Put a static router's expert into the base weights: the same outputs at the base model's cost.

        It stays there after `detach`, and in what `save_pretrained` writes.
        """
        self.attached.fold()

    def unfold(self) -> None:
        """Take a folded expert out of the base weights again."""
        self.attached.unfold()

    def reload(self) -> None:
        """Serve the pool as it is on disk now; queries in flight keep the experts that they began with.

        Until the last of them has ended, both states lie in memory; layers whose experts are the same share them.
        Raises a `GliderError` for whatever does not fit, and then changes nothing.
        """
        self._serve(self.pool.reload(), self.router)

    def set_router(self, router: Router | str, **settings: Any) -> None:
        """Serve by another router from now on (a registry name with its settings, or a router), as `reload` does."""
        from glider.routing.specification import parsed, router_from

        if isinstance(router, str):
            name, written = parsed(router)
            router = router_from(name, {**written, **settings})
        elif settings:
            raise QueryError("settings within the router", ", ".join(settings), "Put them into the router.")
        self._serve(self.pool, require_router(router))

    def _serve(self, pool: Pool, router: Router) -> None:
        prepared = prepare(router, pool)
        pool.verify(adapters=self._storage.expert_memory is None)
        self.attached.replace(router, prepared, self._storage)
        self.pool = pool

    def condition(self, queries: Sequence[Prompt]) -> Condition:
        """The condition of a batch of queries: their global term, where the router has one."""
        return self._condition(queries, self.attached.generation)

    def condition_of(
        self, queries: Sequence[Prompt], inputs: dict[str, torch.Tensor], generation: Generation | None = None
    ) -> Condition:
        """As `condition`; a router that observes the prompt computes it from a first pass over the prompt.

        By default of the current generation.
        """
        return self._condition_of(queries, inputs, generation or self.attached.generation)

    @contextmanager
    def routing(self, queries: "Prompt | Sequence[Prompt]") -> Iterator[None]:
        """Route calls of `model` itself inside the block by these queries, a row for each, in this thread.

        Outside such a block the model reads its queries from the token ids.
        """
        rows: Any = [queries] if is_one(queries) else queries
        with self.attached.hold(begins=True) as held:
            condition = self._condition_of_rows(rows, self.encoder.rows(rows, True, 0), held)
            with self.attached.routing(condition, generation=held):
                yield

    def read(self, texts: Sequence[str]) -> torch.Tensor:
        """Early hidden states (B, H) of the bare base model, which the signal `hidden` uses."""
        with self.attached.bare():
            return prompt_states(self.base, texts)

    @property
    def reader(self) -> QueryReader:
        """What reads queries for the global signals."""
        return QueryReader(self.pool.index.embedder, self.describer, self.read, self.strict)

    def _condition(self, queries: Sequence[Prompt], generation: Generation) -> Condition:
        prompts = [Query.of(query) for query in listed(queries, "queries")]
        return self.reader.condition(prompts, generation.router, generation.prepared)

    def _condition_of(
        self, queries: Sequence[Prompt], inputs: dict[str, torch.Tensor], generation: Generation
    ) -> Condition:
        if not isinstance(generation.router, Observer):
            return self._condition(queries, generation)
        trace = Trace(generation.names, None, inputs["attention_mask"].cpu().bool())
        with torch.inference_mode(), self.attached.routing(None, recorder=trace, generation=generation):
            self.model(**self.encoder.forward_inputs(inputs))
        last = getattr(generation.router, "observes", "mean") == "last"
        condition = generation.router.observe(trace.last_scores() if last else trace.mean_scores())
        return self.reader.judged([Query.of(query) for query in queries], condition, generation.prepared)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int | None = None,
        truncate: bool = False,
        trace: bool = False,
        on_piece: OnPiece | None = None,
        **generation: Any,
    ) -> list[Answer]:
        """Answer a batch that may mix tasks; each prompt has its own global term.

        Arguments:
            prompts: Texts, queries, or chats (each a list of `{"role": ..., "content": ...}`).
            max_new_tokens: Longest answer, in tokens (default: that of a `generation_config`, or 64).
            truncate: Keep the end of a prompt that is too long.
            trace: Let the answers carry the experts' usage.
            on_piece: Called with each new piece of text (not with beams).
            generation: Keyword arguments of transformers' `generate`, `generation_config` among them; greedy unless
                `do_sample=True`.

        Returns: one answer for each prompt.

        Raises: `QueryError` for an empty prompt or one beyond the context length, for settings that give no text or
        several for a prompt, and for logits that are not finite.
        """
        return self._generate(prompts, max_new_tokens, truncate, trace, on_piece, generation)[0]

    def generate_traced(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int | None = None,
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
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int | None = None,
        truncate: bool = False,
        batching: "ContinuousBatchingConfig | None" = None,
        on_answer: Callable[[int, Answer], None] | None = None,
        **generation: Any,
    ) -> list[Answer]:
        """As `generate`, for more prompts than one padded batch should hold: by transformers' continuous batching.

        Prompts of any length share the forward passes, and a prompt comes in when another's answer ends. Greedy answers
        are those of `generate`, each by its prompt's own condition. A model or router whose passes cannot be packed is
        answered in padded batches, one after the other. Attention other than `sdpa` is changed on the model for that
        time: let no other thread use the model then.

        Arguments:
            prompts, max_new_tokens, truncate: As for `generate`.
            batching: How many requests and tokens a pass takes and how large the cache is (default: 32, 512, as large
                as these prompts need).
            on_answer: Called with the row and its answer as each ends.
            generation: Settings of transformers' `generate` but those of beams and of several answers; also
                `stop_strings`, and `seed` for sampling that is repeatable by itself.

        Returns: one answer for each prompt, in their order.

        Raises: `QueryError` for settings that cannot be applied, and `BatchingError` where a pass fails.
        """
        require_function(on_answer, "on_answer")
        settings = EngineSettings.of(self, max_new_tokens, generation)
        rows = self.encoder.rows(prompts, truncate, limit := settings.max_new_tokens)
        answers: dict[int, Answer] = {}
        with self.attached.hold(begins=True) as held:
            condition = self._condition_of_rows(prompts, rows, held)
            engine = open_engine(self, batching, [len(ids) + limit for ids in rows])
            run = EngineRun(self, engine, held, settings)
            try:
                run.add_all(rows, condition)
                for row, answer in run.answers():
                    answers[row] = answer
                    if on_answer is not None:
                        on_answer(row, answer)
            finally:
                engine.close()
        return [answers[row] for row in range(len(rows))]

    def engine(self, batching: "ContinuousBatchingConfig | None" = None) -> "Engine":
        """An engine for requests in token ids that come and go; close it when done."""
        return open_engine(self, batching, ())

    def _condition_of_rows(
        self, prompts: Sequence[Prompt], rows: Sequence[list[int]], generation: Generation
    ) -> Condition:
        """`condition_of`; a router that observes the prompts sees a few at a time."""
        if not isinstance(generation.router, Observer):
            return self._condition(prompts, generation)
        groups = [slice(i, i + _OBSERVED) for i in range(0, len(rows), _OBSERVED)]
        return Condition.cat(
            [self._condition_of(prompts[group], self.encoder.batch(rows[group]), generation) for group in groups]
        )

    @overload
    def stream(self, prompts: "str | Query", **settings: Any) -> Iterator[str]: ...
    @overload
    def stream(self, prompts: Sequence[Message], **settings: Any) -> Iterator[str]: ...
    @overload
    def stream(self, prompts: Sequence[Prompt], **settings: Any) -> Iterator[Piece]: ...
    def stream(
        self, prompts: Any, *, max_new_tokens: int | None = None, truncate: bool = False, **generation: Any
    ) -> Any:
        """Yield text as it is written: strings for one prompt, `Piece(row, text)` for a batch of prompts.

        Takes the settings of `generate_batch`. Leaving the iteration early stops the model. Raises `QueryError` for
        settings that cannot be applied; `generate(..., on_piece=...)` takes all of transformers'.
        """
        single = is_one(prompts)
        batch = [prompts] if single else listed(prompts, "prompts")
        settings = EngineSettings.of(self, max_new_tokens, generation)  # faults show here
        pieces = self._pieces(batch, self.encoder.rows(batch, truncate, settings.max_new_tokens), settings)
        return (piece.text for piece in pieces) if single else pieces

    def _pieces(self, batch: Sequence[Prompt], rows: list[list[int]], settings: EngineSettings) -> Iterator[Piece]:
        with self.attached.hold(begins=True) as held:
            condition = self._condition_of_rows(batch, rows, held)
            engine = PaddedEngine(self.attached, self.encoder.pad_id, rows=len(rows))
            try:
                run = EngineRun(self, engine, held, settings)
                run.add_all(rows, condition)
                yield from run.pieces()
            finally:
                engine.close()

    def score(self, prompt: Prompt, choices: Sequence[str], *, truncate: bool = False) -> list[ChoiceScore]:
        """Log-likelihood of each choice as the answer; the prompt is computed once for all of them."""
        return self.score_many([prompt], [choices], truncate=truncate)[0][0]

    def score_many(
        self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], *, truncate: bool = False
    ) -> tuple[list[list[ChoiceScore]], Condition]:
        """`score` of several prompts, each with its own choices, as one batch; with the batch's condition.

        Prompts of like length waste little on padding. `truncate` leaves each room for the longest of its own choices.
        """
        choices = [listed(texts, "choices") for texts in listed(choices, "lists")]
        if (got := len(choices)) != len(listed(prompts, "prompts")):
            raise QueryError(f"a list of choices for each of {len(prompts)} prompts", f"{got}", "Give as many.")
        targets = [self.encoder.targets(texts) for texts in choices]
        inputs = self._encode(prompts, truncate, self.encoder.rooms(targets))
        with self.attached.hold(begins=True) as held:
            require_support(held.router, len(prompts), shares=True)
            condition = self._condition_of(prompts, inputs, held)
            likelihood_rows = likelihoods(self.model, self.attached, inputs, targets, condition, held)
        return [
            [ChoiceScore(text, value.total, value.tokens) for text, value in zip(texts, row, strict=True)]
            for texts, row in zip(choices, likelihood_rows, strict=True)
        ], condition

    def trace(self, prompt: Prompt, *, truncate: bool = False) -> tuple[list[str], Trace]:
        """Route one prompt and return its tokens as text, with the decision for each at every site."""
        inputs = self._encode([prompt], truncate, 0)
        with self.attached.hold(begins=True) as held:
            condition = self._condition_of([prompt], inputs, held)
            trace = Trace(held.names, condition, inputs["attention_mask"].cpu().bool())
            with torch.inference_mode(), self.attached.routing(condition, recorder=trace, generation=held):
                self.model(**self.encoder.forward_inputs(inputs))
        return [self.tokenizer.decode([token]) for token in inputs["input_ids"][0].tolist()], trace

    def _encode(self, prompts: Sequence[Prompt], truncate: bool, room: int | list[int]) -> dict[str, torch.Tensor]:
        """Prompts as a padded batch that leaves room for so many new tokens."""
        return self.encoder.batch(self.encoder.rows(prompts, truncate, room))

    def _generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int | None,
        truncate: bool,
        traced: bool,
        on_piece: OnPiece | None,
        generation: dict[str, Any],
    ) -> tuple[list[Answer], Trace | None]:
        require_function(on_piece, "on_piece")
        settings = GenerateSettings.of(self, max_new_tokens, generation)
        rows = self.encoder.rows(prompts, truncate, settings.max_new_tokens)
        with self.attached.hold(begins=True) as held:
            require_support(held.router, len(prompts), settings.cached, pieces=settings.pieces is not None)
            return generate_rows(self, prompts, rows, settings, held, traced=traced, on_piece=on_piece)
