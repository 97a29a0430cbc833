"""AdapterSoup: the uniform merge of the experts nearest to a domain (arXiv 2302.07027)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from glider.data.rows import Row
from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import router, routers
from glider.routing.nearest import By, ByEmbedding, Uniform, require_by, require_count
from glider.routing.products import require_experts, weighted_sum
from glider.routing.select import Select
from glider.routing.static import MergedExpert, Static

_HOW = "Give few-shot rows of the task (--fewshot), or the experts' names."


@router("adaptersoup", paper="arXiv:2302.07027")
@dataclass(frozen=True)
class AdapterSoup(ByEmbedding):
    """The uniform merge of the K experts nearest to the query (choice by sentence similarity).

    y = W x + 1/K * sum over the K nearest of s_e B_e A_e x. The paper averages the weights of bottleneck adapters once
    for a domain, told by held-out sentences (`adaptersoup-task`); here each query is its own domain, and the products
    are averaged: for linear experts the average of the products in weight space is the average of the outputs. Averages
    of A and of B each by itself have cross terms: `loraretriever` with fusion.
    """

    k: int = 3
    by: By = "descriptions"

    def __post_init__(self) -> None:
        require_count(self.k)
        require_by(self.by)

    def selection(self) -> Select:
        return Uniform(self.k)


@router("adaptersoup-task", paper="arXiv:2302.07027")
@dataclass(frozen=True)
class AdapterSoupTask(Static):
    """The uniform merge of the K experts nearest to a task, once for all its queries, as the paper does for a domain.

    `fit` embeds the inputs of a few rows of the task; an expert is as near as the mean cosine of these with its mean
    training input (`by=samples`, from its profile). The merge is one expert of all products, free to fold.
    """

    experts: Sequence[str] | None = None
    fitted_setting: ClassVar[str] = "experts"

    def __post_init__(self) -> None:
        if self.experts is not None:
            object.__setattr__(self, "experts", tuple(self.experts))  # a list, where it comes from JSON

    @classmethod
    def check_fit(cls, pool: Pool, **settings: Any) -> None:
        """Raise a `GliderError` for settings that `fit` cannot take, or a pool without what is compared."""
        require_experts(pool)
        _by_query(settings).prepare(pool)

    @classmethod
    def fit(
        cls, base: Any, pool: Pool, rows: Sequence[Row], **settings: Any
    ) -> tuple["AdapterSoupTask", dict[str, Any]]:
        """The router of a task from a few of its rows (`k`, `by` as of `adaptersoup`), and how near each expert is."""
        from glider.inference.spec import ModelSpec

        soup = _by_query(settings)
        model = ModelSpec(router=soup, strict=True).over(base, pool)
        try:
            near = model.condition([row.input for row in rows]).global_scores
        finally:
            model.detach()
        assert near is not None
        means = near.mean(dim=0)
        selected = tuple(pool.names[place] for place in means.argsort(descending=True, stable=True)[: soup.k].tolist())
        scores = dict(zip(pool.names, means.tolist(), strict=True))
        return cls(selected), {"experts": list(selected), "scores": scores, "rows": len(rows)}

    def expert(self, pool: Pool) -> MergedExpert:
        require_experts(pool)
        if not self.experts:
            raise RouterError("the names of the experts that are nearest to the task", "none", _HOW)
        names = list(dict.fromkeys(self.experts))
        weights = {pool[name].name: 1 / len(names) for name in names}
        return MergedExpert("adaptersoup-task", weighted_sum(pool, weights))


def _by_query(settings: Mapping[str, Any]) -> AdapterSoup:
    """What finds the experts near to a row, by its mean samples unless told; the seed draws nothing."""
    known = {"by": "samples", **{name: value for name, value in settings.items() if name != "seed"}}
    return cast(AdapterSoup, routers.create("adaptersoup", **known))
