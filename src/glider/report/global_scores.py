"""How well each expert of a pool suits the queries of each task, by a global signal (GLIDER, figure 3)."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from glider.calibration.threshold import held_back
from glider.config import Config
from glider.data.rows import read_rows
from glider.errors import ConfigError
from glider.evaluation.lm_eval_tasks import task_name
from glider.evaluation.run_plan import matching
from glider.experts.pool import Pool
from glider.inference.queries import Query, QueryReader
from glider.routing.base import GlobalTerm, QueryFeatures
from glider.routing.global_part import GlobalPart
from glider.shapes import Float, Tensor

PROFILES = "held-back queries of the experts' tasks"


LARGEST_SCORE = 1e6  # far beyond what any signal gives, and within what can be drawn
Score = Annotated[float, Field(ge=-LARGEST_SCORE, le=LARGEST_SCORE, allow_inf_nan=False)]


class Spread(Config):
    """Scores over the queries of a task."""

    mean: Score
    low: Score  # 10th percentile
    high: Score  # 90th percentile

    @classmethod
    def of(cls, scores: Float[Tensor, " B"]) -> "Spread":
        low, high = torch.quantile(scores.double(), torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
        return cls(mean=_short(scores.double().mean().item()), low=_short(low), high=_short(high))


class TaskScores(Config):
    """One task: every expert's score, and what becomes of it in the pool that lacks the task's own expert."""

    task: str
    group: str  # where its queries come from
    queries: int
    own: str | None  # the expert made for the task
    scores: dict[str, Spread]  # by expert
    best: Spread  # of each query's best score
    above: float  # share of queries whose best score is above p
    best_without_own: Spread | None = None
    above_without_own: float | None = None


class PoolScores(Config):
    """The scores of a pool's experts for tasks with an expert and without."""

    format: Literal[1] = 1
    signal: str
    p: Score
    experts: tuple[str, ...]
    tasks: tuple[TaskScores, ...]

    @model_validator(mode="after")
    def _fits(self) -> "PoolScores":
        for task in self.tasks:
            if task.scores.keys() != set(self.experts):
                raise ValueError(f"{task.task}: a score of each expert")
            if task.own not in (None, *self.experts):
                raise ValueError(f"{task.task}: its own expert among the experts")
        return self


@dataclass(frozen=True)
class TaskFile:
    """A file of a task's rows; its directory names the group."""

    path: Path

    @property
    def name(self) -> str:
        return task_name(self.path)

    @property
    def group(self) -> str:
        return self.path.absolute().parent.name

    def queries(self, split: str | None, rows: int, seed: int, descriptions: Mapping[str, str] | None) -> list[Query]:
        """At most so many of a split's rows, drawn by the seed, with the task's description where there is one."""
        every = read_rows(self.path, split)
        sample = random.Random(seed).sample(every, min(rows, len(every)))
        return [Query(row.input, (descriptions or {}).get(self.name)) for row in sample]


def task_files(patterns: Sequence[str]) -> list[TaskFile]:
    """The files that paths and wildcards name, each once; raises `ConfigError` naming what fits nothing."""
    files = {pattern: matching(Path(), Path(pattern)) for pattern in patterns}
    if empty := [pattern for pattern, paths in files.items() if not paths]:
        raise ConfigError("files of rows", f"none at {', '.join(empty)}", "Check the paths.")
    return [TaskFile(path) for path in dict.fromkeys(path for paths in files.values() for path in paths)]


def pool_scores(
    pool: Pool,
    signal: str | None = None,
    files: Sequence[TaskFile] = (),
    *,
    profiles: bool = True,
    descriptions: Mapping[str, str] | None = None,
    split: str | None = "test",
    rows: int = 24,
    seed: int = 0,
) -> PoolScores:
    """Score each expert on each task by a global signal (default: the pool's own).

    The tasks are the experts' own, by the queries held back in their profiles (unless `profiles` is False), then those
    of `files`, by `rows` rows of `split` drawn by the seed. `descriptions` (task -> sentence) stand for a file's
    queries where the signal embeds descriptions. Raises `RouterError` where the pool lacks what the signal needs.
    """
    term = GlobalPart(signal).prepare(pool)
    reader = QueryReader(pool.index.embedder, strict=True)
    tasks: list[tuple[str, str, QueryFeatures]] = []
    if profiles:
        tasks += [(name, PROFILES, features) for name, features in held_back(pool, term.scores).items()]
    for file in files:
        features, _ = reader.features(file.queries(split, rows, seed, descriptions), term.scores.needs)
        tasks.append((file.name, file.group, features))
    if not tasks:
        raise ConfigError("tasks to score", "none", "Give --data, or leave --no-profiles out.")
    scored = tuple(_of_task(pool.names, term, *task) for task in tasks)
    return PoolScores(signal=term.signal, p=term.p, experts=tuple(pool.names), tasks=scored)


def _of_task(experts: Sequence[str], term: GlobalTerm, task: str, group: str, features: QueryFeatures) -> TaskScores:
    scores = term.scores.of(features)  # (B, E)
    best = scores.amax(dim=-1)
    result = TaskScores(
        task=task,
        group=group,
        queries=len(scores),
        own=task if task in experts else None,
        scores={name: Spread.of(scores[:, i]) for i, name in enumerate(experts)},
        best=Spread.of(best),
        above=_short((best > term.p).double().mean().item()),
    )
    if result.own is None or len(experts) < 2:
        return result
    without = term.scores.of(features, without=experts.index(result.own)).amax(dim=-1)
    above = _short((without > term.p).double().mean().item())
    return result.model_copy(update={"best_without_own": Spread.of(without), "above_without_own": above})


def _short(value: float) -> float:
    return round(value, 4)
