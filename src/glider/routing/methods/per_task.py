"""One decision for all rows of a task: the task as the unit of routing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from glider.data.rows import Row
from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Decision, Prepared, QueryFeatures, Site, absent_at, router
from glider.routing.compose import Composed
from glider.routing.condition import Condition
from glider.routing.global_part import GlobalPart
from glider.routing.nearest import Everywhere, Nearest, Uniform, require_count
from glider.routing.products import require_experts
from glider.routing.select import Select, TopK
from glider.shapes import Float, Tensor

_HOW = "Give few-shot rows of the task (--fewshot), or the scores."


@router("per-task")
@dataclass(frozen=True)
class PerTask:
    """The K experts that suit a task best, for every row and token of it.

    `scores` are the means of what a global signal (`global_`; default: the pool's) says of the task's few-shot rows,
    the input of each a query. Weights are equal, or the softmax of the kept scores (`weighting`). Static for the task:
    the decision costs nothing at a query. Experts run in any kernel.
    """

    scores: Mapping[str, float] | None = None
    k: int = 1
    weighting: str = "equal"
    fitted_setting: ClassVar[str] = "scores"

    @classmethod
    def check_fit(cls, pool: Pool, **settings: Any) -> None:
        """Raise a `GliderError` for settings that `fit` cannot take, or a pool without what the signal needs."""
        require_experts(pool)
        signal, rest = settings.get("global_", settings.get("global")), dict(settings)
        for name in ("global_", "global", "seed"):
            rest.pop(name, None)
        cls(dict.fromkeys(pool.names, 0.0), **rest)
        GlobalPart(signal).prepare(pool)

    @classmethod
    def fit(cls, base: Any, pool: Pool, rows: Sequence[Row], **settings: Any) -> tuple["PerTask", dict[str, Any]]:
        """The router of a task from a few of its rows, and the scores."""
        from glider.inference.spec import ModelSpec

        settings.pop("seed", None)
        signal = settings.pop("global_", settings.pop("global", None))
        model = ModelSpec(router=_SignalAlone(signal), strict=True).over(base, pool)
        try:
            global_scores = model.condition([row.input for row in rows]).global_scores
        finally:
            model.detach()
        assert global_scores is not None
        scores = dict(zip(pool.names, global_scores.mean(dim=0).tolist(), strict=True))
        return cls(scores, **settings), {"scores": scores, "rows": len(rows)}

    def __post_init__(self) -> None:
        require_count(self.k)
        if self.weighting not in ("equal", "softmax"):
            raise RouterError("a weighting of equal, softmax", repr(self.weighting), "Check the spelling.")

    def prepare(self, pool: Pool) -> Prepared:
        require_experts(pool)
        if self.scores is None:
            raise RouterError("scores of the experts for the task", "none", _HOW)
        if set(self.scores) != set(pool.names):
            raise RouterError("a score of every expert of the pool", ", ".join(self.scores) or "none", _HOW)
        if self.k > len(pool):
            raise RouterError(f"k of at most {len(pool)}, the pool's experts", str(self.k), "Keep fewer experts.")
        values = torch.tensor([self.scores[name] for name in pool.names])
        sites = {name: Site(name, absent_at(name, pool.experts), {"scores": values}) for name in pool.sites}
        return Prepared(pool.experts, sites)

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        return Condition.local(features.count)

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        scores = site["scores"].masked_fill(site.absent, -torch.inf).expand(len(x), -1)
        select = Uniform(self.k) if self.weighting == "equal" else Nearest(self.k)
        return select(scores)


@dataclass(frozen=True)
class _SignalAlone(Composed):
    """A global signal and nothing else."""

    signal: str | None = None
    select: Select = TopK(1)

    def local_score(self) -> Everywhere:
        return Everywhere()

    def global_part(self) -> GlobalPart:
        return GlobalPart(self.signal)
