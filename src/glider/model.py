"""A base model with a pool attached: generate, stream, score, trace."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch

from glider.base_model import BaseModel, load_base
from glider.config import EMBEDDED_BASE
from glider.errors import PoolError, QueryError, RouterError
from glider.experts.base_identity import require_same_base
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.instructions.embedders import Embedder, load_for
from glider.layers.attach import Attached, attach
from glider.layers.trace import Trace
from glider.routing.base import Condition, Observer, Router, routers
from glider.streaming import Piece, PieceStreamer, StopRequested

OnPiece = Callable[[Piece], None]


@dataclass(frozen=True)
class Query:
    """What the user asks. `description`, one sentence naming the task, is embedded in place of the text where given."""

    text: str
    description: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the model wrote for one query, and what guided it."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str  # "stop": the model ended; "length": max_new_tokens did
    global_scores: dict[str, float]  # by expert; empty for a router without a global term
    alpha: float | None
    usage: dict[str, float]  # mean weight of each expert over tokens and sites; empty unless traced


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

    def __init__(self, base: BaseModel, pool: Pool, attached: Attached, prompt: PromptFormat):
        self.base, self.pool, self.attached, self.prompt = base, pool, attached, prompt
        self.model, self.tokenizer = base.model, base.tokenizer
        self._embedder: Embedder | None = None

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
        if self.attached.prepared.global_term is None:
            return None
        if self._embedder is None:
            assert self.pool.index.embedder is not None  # experts with instructions have one
            self._embedder = load_for(self.pool.index.embedder)
        texts = [query.description or query.text for query in map(_query, queries)]
        return self.router.condition(self.attached.prepared, self._embedder.embed(texts))

    def _condition(self, queries: Sequence["str | Query"], inputs: dict[str, torch.Tensor]) -> Condition | None:
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
        if isinstance(choices, str):
            raise QueryError("a list of choices", "one string", "Write [choice, ...].")
        if not choices:
            raise QueryError("at least one choice", "none", "Give the answers to choose from.")
        targets = [self.prompt.target_ids(self.tokenizer, choice) for choice in choices]
        longest = max(map(len, targets))
        inputs = self._encode([prompt], truncate, longest)
        labels = torch.full((len(targets), longest), -100)
        for row, target in zip(labels, targets, strict=True):
            row[: len(target)] = torch.tensor(target)
        labels = labels.to(self.model.device)
        with torch.inference_mode(), self.attached.routing(self._condition([prompt], inputs)):
            logits = self._choice_logits(inputs, labels)
        logp = logits.float().log_softmax(dim=-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        sums = logp.masked_fill(labels == -100, 0.0).sum(dim=-1).tolist()
        return [ChoiceScore(c, total, len(t)) for c, total, t in zip(choices, sums, targets, strict=True)]

    def trace(self, prompt: "str | Query", *, truncate: bool = False) -> tuple[list[str], Trace]:
        """Route one prompt and return its tokens as text, with the decision for each at every site."""
        inputs = self._encode([prompt], truncate, 0)
        condition = self._condition([prompt], inputs)
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
        condition = self._condition(prompts, inputs)
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
        return Answer(
            text=self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            token_ids=tuple(ids),
            finish_reason="stop" if (ids and ids[-1] in ends) or len(ids) < limit else "length",
            global_scores=dict(zip(self.experts, values, strict=False)),  # empty without a global term
            alpha=None if condition is None else condition.alpha[row].item(),
            usage={} if trace is None else trace.usage(row),
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
        """Token ids of a batch, padded on the left for decoder-only models, with every prompt's length checked."""
        if isinstance(prompts, str | Query):
            raise QueryError("a list of prompts", "one prompt", "Write [prompt].")
        if not prompts:
            raise QueryError("at least one prompt", "none", "Give a prompt.")
        rows = []
        for number, query in enumerate(map(_query, prompts), start=1):
            if not query.text.strip():
                raise QueryError("a prompt with text", f"an empty one (prompt {number})", "Write a question.")
            rows.append(self._fit(self.prompt.prompt_ids(self.tokenizer, query.text), truncate, new_tokens, number))
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
        limit = getattr(config, "max_position_embeddings", None)
        if limit is None:  # T5 has relative positions and no limit
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

    def _choice_logits(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Logits (choices, longest, vocabulary) that predict `labels`; the prompt runs once."""
        count, longest = labels.shape
        targets = labels.clamp(min=0)
        if self.model.config.is_encoder_decoder:
            states = self.model.get_encoder()(**inputs).last_hidden_state.expand(count, -1, -1)
            mask = inputs["attention_mask"].expand(count, -1)
            return self.model(encoder_outputs=(states,), attention_mask=mask, labels=targets).logits
        prefix = self.model(**inputs, use_cache=True, logits_to_keep=1)
        first = prefix.logits.expand(count, -1, -1)
        if longest == 1:
            return first
        cache = prefix.past_key_values
        cache.batch_repeat_interleave(count)
        mask = torch.cat([inputs["attention_mask"].expand(count, -1), (labels[:, :-1] != -100).long()], dim=1)
        rest = self.model(input_ids=targets[:, :-1], attention_mask=mask, past_key_values=cache).logits
        return torch.cat([first, rest], dim=1)

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


def load(
    base: str | None = None,
    pool: str | Path = "demo",
    *,
    router: str | Router = "glider",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    expert_dtype: torch.dtype | None = None,
    prompt: PromptFormat | None = None,
    kernel: str | None = None,
    **settings: Any,
) -> RoutedModel:
    """Load a base model, open and verify a pool, and attach it.

    `base` is a hub id, a path or "smollm2-135m"; by default the model the pool was made for. `pool` is a directory, or
    "demo" for the embedded one. `router` is a registry name (with its `settings`) or a router. `dtype` stores the
    base, `expert_dtype` the experts; `kernel` (native, torch, reference) computes them, by default the best that
    can run each call. Raises the `GliderError` of whatever does not fit, before anything is attached.
    """
    opened = open_pool(pool)
    chosen = routers.create(router, **settings) if isinstance(router, str) else router
    if not isinstance(router, str) and settings:
        raise RouterError("settings within the router", f"{', '.join(settings)} beside it", "Put them into the router.")
    prepared = chosen.prepare(opened)  # what the pool cannot serve shows before the base model is loaded
    opened.verify()
    loaded = load_base(base or base_of(opened), dtype=dtype, device=device)
    require_same_base(opened.index.base, loaded.identity, f"the pool {opened.path}")
    prompt = prompt or _prompt_of(opened, loaded)
    attached = attach(loaded.model, opened, chosen, expert_dtype=expert_dtype, prepared=prepared, kernel=kernel)
    return RoutedModel(loaded, opened, attached, prompt)


def open_pool(pool: str | Path) -> Pool:
    """Open a pool by path, or the embedded one by the name "demo"."""
    if pool == "demo":
        from glider.demo.pool import DEMO_POOL

        pool = DEMO_POOL
    return Pool.open(pool)


def base_of(pool: Pool) -> str:
    """What to give `load_base` for the model a pool was made for."""
    from glider.demo.base import BASE_ID

    return EMBEDDED_BASE if pool.index.base.model_id == BASE_ID else pool.index.base.model_id


def _prompt_of(pool: Pool, base: BaseModel) -> PromptFormat:
    formats = list(dict.fromkeys(expert.card.prompt for expert in pool))
    if len(formats) > 1:
        raise PoolError(
            "experts trained with one prompt format",
            f"{len(formats)}: {'; '.join(str(form) for form in formats)}",
            "Say which by load(..., prompt=PromptFormat(...)).",
        )
    return formats[0] if formats else PromptFormat.of(base.model, base.tokenizer)


def _query(prompt: "str | Query") -> Query:
    return Query(prompt) if isinstance(prompt, str) else prompt
