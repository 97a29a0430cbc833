"""The search of LoRAHub's weights on a few rows of a task."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from glider.config import Config
from glider.contribute.examples import EncodedRow, collate, encode_rows
from glider.contribute.lorahub_search import Evaluation, Weighted, minimise, require_nevergrad
from glider.data.rows import Row
from glider.errors import DataError
from glider.experts.base_identity import require_same_base
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import BaseModel
from glider.layers.attach import attach
from glider.routing.methods.lorahub import POPULATION, Lorahub, require_summable
from glider.routing.products import require_experts

Composition = Literal["factors", "products"]
_ROWS = 16  # in a batch


@dataclass(frozen=True)
class LorahubSearch:
    """The result of a search. `history` holds every evaluation in turn, of the experts in `population`."""

    weights: dict[str, float]
    best: Evaluation
    population: tuple[str, ...]
    history: tuple[Evaluation, ...]
    composition: Composition = "factors"

    @property
    def router(self) -> Lorahub:
        """The router with these weights."""
        return Lorahub(self.weights, self.composition)


class LorahubSettings(Config):
    """Settings of a search; the defaults are the authors' (sail-sg/lorahub)."""

    budget: int = Field(40, ge=1)  # evaluations, the first of them the base alone
    population: Annotated[int, Field(ge=1)] | tuple[str, ...] | None = POPULATION
    """The experts searched over: so many drawn by the seed, those named, or None for all. The others weigh zero."""
    composition: Composition = "factors"
    scale: Literal["rows", "tokens"] = "rows"
    """The loss that is weighed against the penalty: the mean cross-entropy of a target token, as the authors have it
    divided by the number of rows ("rows"), or as it is ("tokens")."""
    l1: float = Field(0.05, ge=0, allow_inf_nan=False)  # of the mean absolute weight
    seed: int = Field(0, ge=0, lt=2**32)
    max_tokens: int = Field(2048, ge=1)  # longer rows are left out

    @classmethod
    def of(cls, pool: Pool, **settings: Any) -> "LorahubSettings":
        """The settings, checked against the pool.

        Raises `ConfigError` for settings that do not fit, `PoolError` for a population of unknown experts,
        `RouterError` for factors that cannot be summed, `MissingDependency` without nevergrad.
        """
        search = cls.parse(**settings)
        members = [pool[name] for name in search.members(pool)]
        require_experts(Pool(pool.path, pool.index, members))
        if search.composition == "factors":
            require_summable(members)
        require_nevergrad()
        return search

    def members(self, pool: Pool) -> list[str]:
        """The names of the experts that are searched over."""
        if not isinstance(self.population, int):
            return list(pool.names if self.population is None else dict.fromkeys(self.population))
        if self.population >= len(pool):
            return pool.names
        return random.Random(self.seed).sample(pool.names, self.population)


def search_lorahub(
    base: BaseModel, pool: Pool, rows: Sequence[Row], *, prompt: PromptFormat | None = None, **settings: Any
) -> LorahubSearch:
    """Weigh a pool's experts for a task by few-shot rows of its training split (arXiv 2307.13269).

    Minimises the loss on the rows + `l1` * mean |w|, in `budget` evaluations (`settings` are those of
    `LorahubSettings`). The best evaluation counts. The base is left as it was.
    """
    search = LorahubSettings.of(pool, **settings)
    require_same_base(pool.index.base, base.identity, f"the pool {pool.path}")
    names = search.members(pool)
    if prompt is None:
        prompt = pool[names[0]].card.prompt if names else PromptFormat.of(base.model, base.tokenizer)
    encoded, beyond = encode_rows(rows, base.tokenizer, prompt, search.max_tokens, base.model)
    if not encoded:
        raise DataError("few-shot rows of the task", f"none ({beyond} beyond {search.max_tokens} tokens)", "Give rows.")
    batches = _batches(base, sorted(encoded, key=len))
    share = 1 / len(encoded) if search.scale == "rows" else 1.0
    training = base.model.training
    base.model.eval()
    try:
        with _weighing(base, pool, names, search.composition) as weighed:

            def loss(candidate: Sequence[float]) -> float:
                with weighed(candidate):
                    return share * _mean_loss(base.model, batches)

            history = minimise(loss, len(names), budget=search.budget, l1=search.l1, seed=search.seed)
    finally:
        base.model.train(training)
    best = min(history, key=lambda evaluation: evaluation.objective)
    return LorahubSearch(_weights(pool, names, best.weights), best, tuple(names), tuple(history), search.composition)


def _weights(pool: Pool, names: Sequence[str], candidate: Sequence[float]) -> dict[str, float]:
    """A weight for every expert of the pool: zero for those that are not searched over."""
    return dict.fromkeys(pool.names, 0.0) | dict(zip(names, candidate, strict=True))


@contextmanager
def _weighing(
    base: BaseModel, pool: Pool, names: Sequence[str], composition: Composition
) -> Iterator[Callable[[Sequence[float]], AbstractContextManager[object]]]:
    """Yields a function that attaches weighted experts to the base for the length of a `with`.

    Products are stacked once, and only their weights change; a sum of factors is another expert each time.
    """
    if composition == "products":
        weights = torch.zeros(len(names))
        members = Pool(pool.path, pool.index, [pool[name] for name in names])
        attached = attach(base.model, members, Weighted(weights))
        try:
            yield lambda candidate: nullcontext(weights.copy_(torch.tensor(candidate)))
        finally:
            attached.detach()
        return

    @contextmanager
    def summed(candidate: Sequence[float]) -> Iterator[None]:
        attached = attach(base.model, pool, Lorahub(_weights(pool, names, candidate), "factors"))
        try:
            yield
        finally:
            attached.detach()

    yield summed


def _batches(base: BaseModel, rows: Sequence[EncodedRow]) -> list[dict[str, torch.Tensor]]:
    encoder_decoder, pad = base.model.config.is_encoder_decoder, base.tokenizer.pad_token_id
    groups = [rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS)]
    return [
        {name: tensor.to(base.model.device) for name, tensor in collate(group, pad, encoder_decoder).items()}
        for group in groups
    ]


@torch.inference_mode()
def _mean_loss(model: Any, batches: Sequence[dict[str, torch.Tensor]]) -> float:
    """Mean cross-entropy per target token."""
    total, count = 0.0, 0
    for batch in batches:
        labels = batch["labels"]  # (B, longest target)
        if model.config.is_encoder_decoder:
            logits = model(**batch).logits
        else:  # the targets stand together at the end; each token is predicted by the one before
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            length = labels.shape[1] + 1
            logits = model(**inputs, use_cache=False, logits_to_keep=length).logits[:, -length:-1]
        flat = labels.flatten()
        total += torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), flat, reduction="sum").item()
        count += int((flat != -100).sum())
    return total / count
