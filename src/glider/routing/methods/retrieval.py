"""The expert whose embedding is nearest to the query's."""

from dataclasses import dataclass
from typing import Literal

from glider.errors import RouterError
from glider.routing.base import router
from glider.routing.nearest import ByEmbedding, Nearest, Uniform, require_count
from glider.routing.select import Select


@router("retrieval")
@dataclass(frozen=True)
class Retrieval(ByEmbedding):
    """The expert whose embedding is nearest to the query's, for all its tokens; or the K nearest, mixed.

    score = cosine(g_e, q) / temperature; weights by softmax over the K kept, or equal. At a site that a chosen expert
    lacks, the next nearest stands in.
    """

    k: int = 1
    weighting: Literal["softmax", "equal"] = "softmax"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_count(self.k)
        if self.weighting not in ("softmax", "equal"):
            raise RouterError("a weighting of softmax, equal", repr(self.weighting), "Check the spelling.")
        if not 0 < self.temperature < float("inf"):
            raise RouterError("a temperature above 0", str(self.temperature), "Give --temperature such as 0.1.")

    def selection(self) -> Select:
        return Nearest(self.k) if self.weighting == "softmax" else Uniform(self.k)
