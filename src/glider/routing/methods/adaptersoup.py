"""AdapterSoup: the uniform merge of the experts nearest to a domain (arXiv 2302.07027)."""

from dataclasses import dataclass

from glider.routing.base import router
from glider.routing.nearest import ByEmbedding, Uniform, require_count
from glider.routing.select import Select


@router("adaptersoup", paper="arXiv:2302.07027")
@dataclass(frozen=True)
class AdapterSoup(ByEmbedding):
    """The uniform merge of the K experts nearest to the query (choice by sentence similarity).

    y = W x + 1/K * sum over the K nearest of s_e B_e A_e x. The paper averages the weights of bottleneck adapters once
    for a domain, told by held-out sentences; here each query is its own domain, and the products are averaged: for
    linear experts the average of the products in weight space is the average of the outputs. Averages of A and of B
    each by itself have cross terms: `loraretriever` with fusion.
    """

    k: int = 3

    def __post_init__(self) -> None:
        require_count(self.k)

    def selection(self) -> Select:
        return Uniform(self.k)
