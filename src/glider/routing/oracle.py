"""The references that no zero-shot method can use: the best single expert, and one expert trained on all data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from glider.errors import PoolError, RouterError
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

    def __post_init__(self) -> None:
        if self.argument and self.scores is not None:
            raise RouterError("one of a name and scores", f"{self.argument} and scores", "Leave one of them out.")

    def expert(self, pool: Pool) -> Expert:
        if self.argument:
            return pool[self.argument]
        if self.scores is None:
            raise RouterError("an evaluation with labels (router oracle)", "none", _EVALUATE)
        if missing := [name for name in pool.names if name not in self.scores]:
            raise RouterError(
                "an evaluation of every expert (router oracle)", f"none of {', '.join(missing)}", _EVALUATE
            )
        if unknown := [name for name in self.scores if name not in pool.names]:
            raise RouterError("scores of the pool's experts", f"one of {', '.join(unknown)}", "Check the names.")
        return pool[best_expert(self.scores)]


def best_expert(scores_by_expert: Mapping[str, float]) -> str:
    """The expert with the highest score on the evaluation set, the first of equals.

    Raises `RouterError` without scores, and for a score that is no finite number: a failed evaluation is not a low one.
    """
    if not scores_by_expert:
        raise RouterError("an evaluation with labels (router oracle)", "no score", _EVALUATE)
    failed = [name for name, score in scores_by_expert.items() if not math.isfinite(score)]
    if failed:
        raise RouterError("a finite score of every expert", f"none of {', '.join(failed)}", "Evaluate these again.")
    return max(scores_by_expert, key=lambda name: scores_by_expert[name])


@router("multitask")
@dataclass(frozen=True)
class Multitask(Static):
    """`multitask:PATH`: one LoRA trained on the union of the pool's data, the reference that needs all data.

    PATH is its own expert directory, outside the pool, for the pool's base model and with its prompt format.
    """

    argument: str

    def __post_init__(self) -> None:
        if not self.argument:
            raise RouterError("the directory of an expert (router multitask)", "none", "Write multitask:PATH.")

    def expert(self, pool: Pool) -> Expert:
        expert = Expert.open(self.argument)
        for member in pool:
            if member.directory.resolve() == expert.directory.resolve():
                raise RouterError(
                    "an expert outside the pool (router multitask)",
                    f"{member.name}, one of its experts",
                    f"Write single:{member.name}, or give the one trained on the union of the pool's data.",
                )
        mine, base = expert.card.base, pool.index.base
        if mine.hash != base.hash:
            raise PoolError(
                f"an expert for the pool's base model {base.model_id} ({base.hash})",
                f"{expert.name} at {expert.directory}, made for {mine.model_id} ({mine.hash})",
                "Train it on the pool's base model.",
            )
        formats = list(dict.fromkeys(member.card.prompt for member in pool))
        if formats and expert.card.prompt not in formats:
            raise RouterError(
                f"the pool's prompt format ({'; '.join(str(form) for form in formats)})",
                f"{expert.card.prompt} for {expert.name}",
                "Train it with the pool's prompt format.",
            )
        expert.verify()
        return expert
