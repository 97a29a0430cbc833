"""LoRAHub: one expert, a weighted sum of several, its weights found without gradients (arXiv 2307.13269)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from glider.errors import RouterError
from glider.experts.expert import ExpertLike
from glider.experts.pool import Pool
from glider.routing.base import router
from glider.routing.products import require_equal_ranks, require_experts, weighted_factors, weighted_sum
from glider.routing.static import MergedExpert, Static

BOUND = 1.5
POPULATION = 20  # experts that the authors draw for a task
_HOW = "Find them on few-shot rows: glider.contribute.lorahub.search_lorahub(base, pool, rows)."


@router("lorahub", paper="arXiv:2307.13269")
@dataclass(frozen=True)
class Lorahub(Static):
    """(sum of w_e B_e)(sum of w_e A_e) with w_e in [-1.5, 1.5], found for a task on few examples of it.

    - "factors", as the paper: A and B are summed each by itself (the root of the scaling in both), which has cross
      terms w_i w_j B_i A_j, and w_e squared before each expert's own. Needs equal ranks.
    - "products": sum of w_e s_e B_e A_e, for any ranks.
    """

    weights: Mapping[str, float] | None = None
    composition: Literal["factors", "products"] = "factors"

    def __post_init__(self) -> None:
        for name, weight in (self.weights or {}).items():
            if not math.isfinite(weight) or abs(weight) > BOUND + 1e-6:
                raise RouterError(f"weights in [-{BOUND}, {BOUND}]", f"{weight} for {name}", "Search them again.")
        if self.composition not in ("factors", "products"):
            raise RouterError("a composition of factors, products", repr(self.composition), "Check the spelling.")

    @staticmethod
    def renewed(settings: Mapping[str, Any]) -> dict[str, Any]:
        """Products of all experts used to be weighed, by the loss of a token."""
        search = {} if "weights" in settings else {"population": POPULATION, "scale": "rows"}
        return {"composition": "factors", **search}

    def expert(self, pool: Pool) -> MergedExpert:
        require_experts(pool)
        if self.weights is None:
            raise RouterError("the experts' weights", "none", _HOW)
        missing = [name for name in pool.names if name not in self.weights]
        unknown = [name for name in self.weights if name not in pool.names]
        if missing or unknown:
            got = f"none of {', '.join(missing)}" if missing else f"one of {', '.join(unknown)}, not in the pool"
            raise RouterError("a weight for every expert of the pool", got, _HOW)
        if self.composition == "products":
            return MergedExpert("lorahub", weighted_sum(pool, self.weights))
        require_summable([expert for expert in pool if self.weights[expert.name] != 0])
        return MergedExpert("lorahub", weighted_factors(pool, self.weights))


def require_summable(experts: Sequence[ExpertLike]) -> None:
    """Raise `RouterError` for experts whose factors cannot be summed."""
    require_equal_ranks(experts, "lorahub of factors", "Choose composition products.")
