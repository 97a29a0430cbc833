"""The best single expert on the evaluation set: an upper bound that no zero-shot method can reach fairly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from glider.errors import RouterError
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.routing.base import router
from glider.routing.static import Static

_EVALUATE = "Evaluate each expert by single:NAME on labelled rows, and give oracle:NAME or Oracle(scores=...)."


@router("oracle")
@dataclass(frozen=True)
class Oracle(Static):
    """`single` of the expert that is best on the evaluation set: an upper bound, since it has seen the labels.

    `oracle:NAME` names that expert; `Oracle(scores=...)` takes each expert's score (higher is better) and finds it.
    """

    argument: str = ""
    scores: Mapping[str, float] | None = None
    results_setting: ClassVar[str] = "scores"

    def __post_init__(self) -> None:
        if self.argument and self.scores is not None:
            raise RouterError("one of a name and scores", f"{self.argument} and scores", "Leave one of them out.")

    def expert(self, pool: Pool) -> Expert:
        if self.argument:
            return pool[self.argument]
        if self.scores is None:
            raise RouterError("an evaluation with labels", "none", _EVALUATE)
        if missing := [name for name in pool.names if name not in self.scores]:
            raise RouterError("an evaluation of every expert", f"none of {', '.join(missing)}", _EVALUATE)
        if unknown := [name for name in self.scores if name not in pool.names]:
            raise RouterError("scores of the pool's experts", f"one of {', '.join(unknown)}", "Check the names.")
        return pool[best_expert(self.scores)]


def best_expert(scores_by_expert: Mapping[str, float]) -> str:
    """The expert with the highest score on the evaluation set, the first of equals.

    Raises `RouterError` without scores, and for a score that is no finite number: a failed evaluation is not a low one.
    """
    if not scores_by_expert:
        raise RouterError("an evaluation with labels", "no score", _EVALUATE)
    failed = [name for name, score in scores_by_expert.items() if not math.isfinite(score)]
    if failed:
        raise RouterError("a finite score of every expert", f"none of {', '.join(failed)}", "Evaluate these again.")
    return max(scores_by_expert, key=lambda name: scores_by_expert[name])
