"""Softmax gates of each layer, fitted on few rows of a task: what the router `mole` is."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from glider.config import Config
from glider.contribute.examples import Batches, encode_rows
from glider.contribute.loop import Loop
from glider.contribute.settings import Schedule
from glider.data.rows import Row
from glider.errors import DataError
from glider.experts.base_identity import require_same_base
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel
from glider.layers.attach import Storage, attach
from glider.routing.base import Decision, Prepared, QueryFeatures, Site, absent_at
from glider.routing.condition import Condition
from glider.routing.methods.mole import layer_of, layers
from glider.shapes import Float, Tensor


class FewshotSettings(Config):
    """Settings of a fit on few rows."""

    steps: int = Field(20, ge=1)
    learning_rate: float = Field(0.1, gt=0)
    max_tokens: int = Field(2048, gt=1)
    seed: int = Field(0, ge=0, lt=2**32)


def fit_gates(
    base: BaseModel, pool: Pool, rows: Sequence[Row], settings: FewshotSettings
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Each layer's weights after the steps, by expert, and the loss on the rows before and after.

    Gates begin equal. The rows are too few to hold any back: the last step counts.
    """
    require_same_base(pool.index.base, base.identity, f"the pool {pool.path}")
    encoded, beyond = encode_rows(rows, base.tokenizer, pool.experts[0].card.prompt, settings.max_tokens, base.model)
    if not encoded:
        got = f"none ({beyond} beyond {settings.max_tokens} tokens)"
        raise DataError("few-shot rows of the task", got, "Give rows.")
    gates = {layer: nn.Parameter(torch.zeros(len(pool))) for layer in layers(pool)}
    training, was = base.model.training, [p.requires_grad for p in base.model.parameters()]
    base.model.eval().requires_grad_(False)
    attached = attach(base.model, pool, _Gates(gates), Storage(kernel="torch"))
    try:
        with tempfile.TemporaryDirectory() as scratch, attached.routing(None):
            loop = Loop(
                base.model, gates, _schedule(settings), base.tokenizer.pad_token_id, Path(scratch) / "state",
                autocast=False, seed=settings.seed,
            )  # fmt: skip
            with torch.no_grad():
                before = loop._mean_loss(encoded)
            loop.run(Batches(encoded, len(encoded), settings.seed), (), lambda _: None)
            with torch.no_grad():
                after = loop._mean_loss(encoded)
    finally:
        attached.detach()
        base.model.train(training)
        for parameter, needed in zip(base.model.parameters(), was, strict=True):
            parameter.requires_grad_(needed)
    weights = {
        layer: dict(zip(pool.names, gate.detach().softmax(dim=0).tolist(), strict=True))
        for layer, gate in gates.items()
    }
    return weights, {"loss_before": before, "loss": after}


def _schedule(settings: FewshotSettings) -> Schedule:
    return Schedule(
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup_ratio=0.0,
        clip_norm=1.0,
        minutes=None,
        validations=1,
    )


@dataclass(frozen=True)
class _Gates:
    """Every token uses every expert by the softmax of its layer's gate. The fit changes the gates in place."""

    gates: Mapping[str, nn.Parameter]

    def prepare(self, pool: Pool) -> Prepared:
        return Prepared(pool.experts, {name: Site(name, absent_at(name, pool.experts)) for name in pool.sites})

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        return Condition.local(features.count)

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        weights = self.gates[layer_of(site.name)].softmax(dim=0).expand(len(x), -1)
        return Decision(torch.arange(weights.shape[1]).expand(len(x), -1), weights)
