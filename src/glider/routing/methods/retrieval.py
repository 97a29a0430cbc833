"""The expert whose embedding is nearest to the query's."""

from dataclasses import dataclass
from typing import Literal

from glider.errors import RouterError
from glider.routing.base import router
from glider.routing.nearest import By, ByEmbedding, Nearest, Uniform, require_by, require_count
from glider.routing.select import Select


@router("retrieval")
@dataclass(frozen=True)
class Retrieval(ByEmbedding):
    """The expert whose embedding is nearest to the query's, for all its tokens; or the K nearest, mixed.

    score = cosine(g_e, q) / temperature; weights by softmax over the K kept, or equal. At a site that a chosen expert
    lacks, the next nearest stands in. `by=examples` is PHATGOOSE's baseline "Retrieval": the expert with the one stored
    input most similar to the query. Profiles keep 24 of them, or as many as `glider expert profile --stored` says;
    that paper keeps 1,000. `by=samples` compares the mean training inputs.
    """

    k: int = 1
    weighting: Literal["softmax", "equal"] = "softmax"
    temperature: float = 1.0
    by: By = "descriptions"

    def __post_init__(self) -> None:
        require_count(self.k)
        require_by(self.by)
        if self.weighting not in ("softmax", "equal"):
            raise RouterError("a weighting of softmax, equal", repr(self.weighting), "Check the spelling.")
        if not 0 < self.temperature < float("inf"):
            raise RouterError("a temperature above 0", str(self.temperature), "Give --temperature such as 0.1.")

    def selection(self) -> Select:
        return Nearest(self.k) if self.weighting == "softmax" else Uniform(self.k)
