"""The search of LoRAHub's weights on a few rows of a task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from glider.routing.methods.lorahub import Lorahub

_ROWS = 16  # in a batch


@dataclass(frozen=True)
class LorahubSearch:
    """What a search found. `history` holds every evaluation in turn, of the experts in `population`."""

    weights: dict[str, float]
    best: Evaluation
    population: tuple[str, ...]
    history: tuple[Evaluation, ...]

    @property
    def router(self) -> Lorahub:
        """The router with these weights."""
        return Lorahub(self.weights)


class LorahubSettings(Config):
    """Settings of a search; the defaults are the authors', who draw a population of 20 at random."""

    budget: int = Field(40, ge=1)  # evaluations, the first of them the base alone
    population: tuple[str, ...] | None = None  # the experts searched over; the others weigh zero
    l1: float = Field(0.05, ge=0, allow_inf_nan=False)  # of the mean absolute weight
    seed: int = Field(0, ge=0, lt=2**32)
    max_tokens: int = Field(2048, ge=1)  # longer rows are left out

    @classmethod
    def of(cls, pool: Pool, **settings: Any) -> "LorahubSettings":
        """The settings, checked against the pool.

        Raises `ConfigError` for ones that do not fit, `PoolError` for a population of others, `MissingDependency`
        without nevergrad.
        """
        made = cls.parse(**settings)
        for name in made.population or ():
            pool[name]
        require_nevergrad()
        return made


def search_lorahub(
    base: BaseModel, pool: Pool, rows: Sequence[Row], *, prompt: PromptFormat | None = None, **settings: Any
) -> LorahubSearch:
    """Weigh a pool's experts for a task by few-shot rows of its training split (arXiv 2307.13269).

    Minimises the mean cross-entropy over target tokens + `l1` * mean |w|, in `budget` evaluations (`settings` are those
    of `LorahubSettings`). The experts are stacked once; an evaluation changes only their weights. The best evaluation
    counts. The base is left as it was.
    """
    search = LorahubSettings.of(pool, **settings)
    require_same_base(pool.index.base, base.identity, f"the pool {pool.path}")
    population = search.population
    names = tuple(pool.names if population is None else dict.fromkeys(population))
    chosen = Pool(pool.path, pool.index, [pool[name] for name in names])
    weights = torch.zeros(len(names))
    if prompt is None:
        prompt = chosen.experts[0].card.prompt if names else PromptFormat.of(base.model, base.tokenizer)
    encoded, beyond = encode_rows(rows, base.tokenizer, prompt, search.max_tokens)
    if not encoded:
        raise DataError("few-shot rows of the task", f"none ({beyond} beyond {search.max_tokens} tokens)", "Give rows.")
    batches = _batches(base, sorted(encoded, key=len))

    def loss(candidate: Sequence[float]) -> float:
        weights.copy_(torch.tensor(candidate))
        return _mean_loss(base.model, batches)

    attached = attach(base.model, chosen, Weighted(weights))
    training = base.model.training
    base.model.eval()
    try:
        history = minimise(loss, len(names), budget=search.budget, l1=search.l1, seed=search.seed)
    finally:
        attached.detach()
        base.model.train(training)
    best = min(history, key=lambda evaluation: evaluation.objective)
    found = dict.fromkeys(pool.names, 0.0) | dict(zip(names, best.weights, strict=True))
    return LorahubSearch(found, best, names, tuple(history))


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
            kept = labels.shape[1] + 1
            logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits[:, -kept:-1]
        flat = labels.flatten()
        total += torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), flat, reduction="sum").item()
        count += int((flat != -100).sum())
    return total / count
