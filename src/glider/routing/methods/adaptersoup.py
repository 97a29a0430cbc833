"""AdapterSoup: the uniform merge of the experts nearest to a domain (arXiv 2302.07027)."""

from collections.abc import Sequence
from dataclasses import dataclass

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import router
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

    A fit embeds the inputs of a few rows of the task; an expert is as near as the mean cosine of these with its mean
    training input (`by=samples`, from its profile). The merge is one expert of all products, free to fold.
    """

    experts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.experts is not None:
            object.__setattr__(self, "experts", tuple(self.experts))  # a list, where it comes from JSON

    def expert(self, pool: Pool) -> MergedExpert:
        require_experts(pool)
        if not self.experts:
            raise RouterError("the names of the experts that are nearest to the task", "none", _HOW)
        names = list(dict.fromkeys(self.experts))
        weights = {pool[name].name: 1 / len(names) for name in names}
        return MergedExpert("adaptersoup-task", weighted_sum(pool, weights))
