"""One decision for all rows of a task: the task as the unit of routing."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Decision, Prepared, QueryFeatures, Site, absent_at, router
from glider.routing.condition import Condition
from glider.routing.nearest import Nearest, Uniform, require_count
from glider.routing.products import require_experts
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
