"""LoRAHub: one expert, a weighted sum of all, its weights found without gradients (arXiv 2307.13269)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from glider.data.rows import Row
from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import router
from glider.routing.products import require_experts, weighted_sum
from glider.routing.static import MergedExpert, Static

BOUND = 1.5
_HOW = "Find them on few-shot rows: glider.contribute.lorahub.search_lorahub(base, pool, rows)."


@router("lorahub", paper="arXiv:2307.13269")
@dataclass(frozen=True)
class Lorahub(Static):
    """sum of w_e s_e B_e A_e with w_e in [-1.5, 1.5], found for a task on few examples of it.

    The weights stand over the products. The paper composes (sum w_e A_e)(sum w_e B_e), which has cross terms; the
    products need no equal ranks and have none.
    """

    weights: Mapping[str, float] | None = None
    fitted_setting: ClassVar[str] = "weights"

    @classmethod
    def check_fit(cls, pool: Pool, **settings: Any) -> None:
        """Raise a `GliderError` for settings of the search (`LorahubSettings`) that do not fit, or an empty pool."""
        from glider.contribute.lorahub import LorahubSettings

        require_experts(pool)
        LorahubSettings.of(pool, **settings)

    @classmethod
    def fit(cls, base: Any, pool: Pool, rows: Sequence[Row], **settings: Any) -> tuple["Lorahub", dict[str, Any]]:
        """The router whose weights a search on rows of a task finds, with its loss (`search_lorahub`)."""
        from glider.contribute.lorahub import search_lorahub

        search = search_lorahub(base, pool, rows, **settings)
        return search.router, {"weights": search.weights, "loss": search.best.loss, "rows": len(rows)}

    def __post_init__(self) -> None:
        for name, weight in (self.weights or {}).items():
            if not math.isfinite(weight) or abs(weight) > BOUND + 1e-6:
                raise RouterError(f"weights in [-{BOUND}, {BOUND}]", f"{weight} for {name}", "Search them again.")

    def expert(self, pool: Pool) -> MergedExpert:
        require_experts(pool)
        if self.weights is None:
            raise RouterError("the experts' weights", "none", _HOW)
        missing = [name for name in pool.names if name not in self.weights]
        unknown = [name for name in self.weights if name not in pool.names]
        if missing or unknown:
            got = f"none of {', '.join(missing)}" if missing else f"one of {', '.join(unknown)}, not in the pool"
            raise RouterError("a weight for every expert of the pool", got, _HOW)
        return MergedExpert("lorahub", weighted_sum(pool, self.weights))
