"""Section 5.1, the training of the experts, as configs: which base, which tasks by which sources, which settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fullrun.plan import HERE, Lengths, P3Source, PromptedSource, TaskSet, TaskSource, TrecSource, read_config
from glider.config import Config, faults
from glider.contribute.settings import TrainConfig
from glider.errors import ConfigError


class FlanSource(Config):
    """A task of the Flan collection, by its name in one of the submixes that the hub has."""

    source: Literal["flan"]
    submix: Literal["flan2021", "dialog"]
    task: str
    assumed: Lengths = Lengths(input=180, target=25)


class CategorySource(Config):
    """A category of Super-Natural Instructions: the tasks of a clone that name it first."""

    source: Literal["natural-instructions"]
    category: str
    assumed: Lengths = Lengths(input=200, target=20)


TrainSource = Annotated[
    P3Source | PromptedSource | TrecSource | FlanSource | CategorySource, Field(discriminator="source")
]


class TrainingTasks(Config):
    """Tasks of sets that are evaluated (null for all of a set), by their training splits, and others."""

    sets: dict[str, tuple[str, ...] | None] = {}
    tasks: dict[str, TrainSource] = {}


class TrainingConfig(Config):
    """One pool of experts to train."""

    title: str
    base: str
    shape: Literal["t5-xl", "llama-8b"]  # for the estimate
    dtype: Literal["float32", "bfloat16"]  # in which the base is kept
    tasks: str  # a file of training/
    experts: int = Field(ge=1)
    settings: dict[str, Any] = {}  # of `glider expert train`
    rows: int | None = Field(default=None, ge=1)  # of a task at most; default: as many as the steps can see


@dataclass(frozen=True)
class Training:
    """A pool of experts with everything resolved."""

    config: str  # such as `train/t0-t5xl`
    title: str
    base: str
    shape: str
    dtype: str
    settings: TrainConfig
    most: int  # rows of a task
    tasks: Mapping[str, TaskSource | FlanSource | CategorySource]

    @property
    def name(self) -> str:
        """Of the pool."""
        return self.config.partition("/")[2]

    @property
    def command(self) -> str:
        """What trains it."""
        return f"python reproduce/paper/run.py {self.config} --device cuda"


def read_training(name: str, sets: Mapping[str, TaskSet]) -> Training:
    """Read a config of train/ with its tasks; raises `ConfigError` naming the faults, a wrong number of tasks too."""
    path = HERE / f"{name}.yaml"
    config = read_config(path, TrainingConfig)
    listed = read_config(HERE / "training" / f"{config.tasks}.yaml", TrainingTasks)
    tasks: dict[str, TaskSource | FlanSource | CategorySource] = {}
    for set_name, selected in listed.sets.items():
        of_set = sets[set_name].tasks if set_name in sets else {}
        names = tuple(of_set) if selected is None else selected
        if lacking := [one for one in names if one not in of_set] or ([] if of_set else [set_name]):
            raise ConfigError(f"tasks of sets in training/{config.tasks}.yaml", ", ".join(lacking), "Mend the file.")
        tasks |= {one: of_set[one] for one in names}
    if twice := sorted(tasks.keys() & listed.tasks.keys()):
        raise ConfigError(f"tasks named once in training/{config.tasks}.yaml", ", ".join(twice), "Mend the file.")
    tasks |= listed.tasks
    if len(tasks) != config.experts:
        raise ConfigError(
            f"{config.experts} tasks in training/{config.tasks}.yaml", str(len(tasks)), f"Mend it or {path}."
        )
    if bad := [one for one in tasks if not re.fullmatch(r"[a-z0-9]+", one)]:
        raise ConfigError("tasks of small letters and digits", bad[0], "Mend the file.")
    try:
        settings = TrainConfig(**config.settings)
    except ValidationError as fault:
        raise ConfigError(f"settings of training in {path}", faults(fault), "Mend the file.") from fault
    seen = settings.steps * settings.batch_size + settings.validation + settings.stored
    return Training(
        name, config.title, config.base, config.shape, config.dtype, settings, min(seen, config.rows or seen), tasks
    )
