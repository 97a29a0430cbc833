"""What the full reproduction consists of: the YAML files beside this package, checked before anything runs.

A config is a table, or one of its rows; a method of it on a pool and a set of tasks is a cell.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from glider.config import Config, faults
from glider.errors import ConfigError
from glider.evaluation.metrics import Metric

if TYPE_CHECKING:
    from fullrun.training_plan import Training

FEWSHOT = 5  # rows of a task for LoRAHub
HERE = Path(__file__).resolve().parents[1]

Published = Literal[
    "accuracy", "accuracy_multiple_ans", "squad", "bleu", "rouge", "exact_match", "exact_match_multiple_ans"
]
_OURS: dict[Published, Metric] = {
    "accuracy": "accuracy",
    "accuracy_multiple_ans": "accuracy",
    "squad": "squad",
    "bleu": "bleu",
    "rouge": "rougeL",
    "exact_match": "exact_match",
    "exact_match_multiple_ans": "exact_match",
}
_Read = TypeVar("_Read", bound=Config)


class Lengths(Config):
    """Assumed means for the estimate: tokens of a prompt and of a target, end token counted, and choices of a row."""

    input: int = Field(ge=1)
    target: int = Field(ge=1)
    choices: float = Field(default=0, ge=0)  # 0: a free answer


class TaskSource(Config):
    """One task: where its rows are, which the published evaluation takes, and how it scores them."""

    metrics: tuple[Published, ...] = Field(min_length=1)  # the task's score is their mean
    split: tuple[str, ...]  # more than one: joined
    available: int = Field(ge=1)  # rows of the split, as its authors document it: for the estimate alone
    assumed: Lengths
    max_length: int | None = Field(default=None, ge=2)  # of an answer, with the decoder's start token as published
    max_input: int | None = 512  # tokens, end token counted; a longer prompt keeps its beginning
    last: int | None = None  # only so many rows at the end of the split
    train: str | None = "train"  # where few-shot rows come from; None: rows set apart from the split
    left_out: float = Field(default=0.05, ge=0, lt=1)  # share of rows that may lack their answer among the choices

    @property
    def metric(self) -> Metric:
        """What `glider evaluate` scores by."""
        return _OURS[self.metrics[0]]


class P3Source(TaskSource):
    """A task of bigscience/P3: a data set of the hub has a config for each of its templates."""

    source: Literal["p3"]
    parts: tuple[str, ...] = Field(min_length=1)  # more than one: joined
    templates: tuple[str, ...] = Field(min_length=1)
    ending: str = ""

    def config(self, part: str, template: str) -> str:
        """The name of the hub's config, such as `social_i_qa_Generate_answer`."""
        return f"{part}_{template}{self.ending}"


class BigBenchSource(TaskSource):
    """A task of tasksource/bigbench."""

    source: Literal["bigbench"]
    name: str


class BbhSource(TaskSource):
    """A task of lukaemon/bbh; `choices` are the published code's for all rows, none for free answers."""

    source: Literal["bbh"]
    name: str
    choices: tuple[str, ...] = ()


class PromptedSource(TaskSource):
    """A data set of the hub as its authors made it, rendered by templates of promptsource: for what P3 lacks, or keeps
    less of than the published evaluation reads."""

    source: Literal["prompted"]
    hub: str  # the data set
    config: str | None = None
    prompts: str  # its directory in promptsource, such as `hotpot_qa/fullwiki`
    templates: tuple[str, ...] = Field(min_length=1)  # promptsource's names
    answers: tuple[str, ...] = ()  # the way to all right answers of a row, such as [answers, text]; none: the rendered


class TrecSource(TaskSource):
    """TREC's questions under the published evaluation's own prompt, with the fine labels for choices."""

    source: Literal["trec"]
    hub: str
    labels: tuple[str, ...] = Field(min_length=2)  # in the order of the data set's `fine_label`


Source = Annotated[P3Source | BigBenchSource | BbhSource | PromptedSource | TrecSource, Field(discriminator="source")]


class TaskSet(Config):
    """Tasks whose mean is one number of the table."""

    queries: str  # the published instruction embeddings of the queries, within the downloads
    held_back: float = Field(
        default=0, ge=0, lt=1
    )  # share at the end of a split that the published code keeps to validate
    most: int | None = Field(default=None, ge=1)  # rows of a split, before templates
    templates: Literal["round-robin", "all"] = "all"  # each row under one template in turn, or under all
    tasks: dict[str, Source] = Field(min_length=1)


class PartOfSet(Config):
    """Some tasks of another set, under a name of their own."""

    part_of: str
    tasks: tuple[str, ...] = Field(min_length=1)


class PoolSource(Config):
    """A base model and the published experts for it."""

    base: str
    experts: int = Field(ge=0)
    checkpoint: str | None = None  # the directory of the download; None: no experts
    embeddings: str | None = None  # the experts' own instruction embeddings
    without: tuple[str, ...] = ()  # left out where the checkpoint has them

    @model_validator(mode="after")
    def _whole(self) -> "PoolSource":
        if (self.checkpoint is None) != (self.experts == 0):
            raise ValueError("a checkpoint for experts, and none for a pool without")
        return self


class Method(Config):
    """A router with its settings, and what is published of it: per cent by pool and set, null where nothing is."""

    router: str
    settings: dict[str, Any] = {}
    fewshot: int = Field(default=5, ge=1)
    cells: dict[str, dict[str, float | None]] = Field(min_length=1)


Figure = Literal["routing", "scores"]


class TableConfig(Config):
    """Rows of a table, each by its label; or of a figure, which is drawn for each pool and set."""

    title: str
    figure: Figure | None = None  # routing: experts by site (Figure 2); scores: global scores by task (Figure 3)
    rows: int = Field(default=8, ge=1)  # of a figure: prompts of each task
    methods: dict[str, Method] = Field(min_length=1)


@dataclass(frozen=True)
class Cell:
    """One method on one pool and one set of tasks."""

    config: str  # such as `table1/glider`
    label: str
    method: Method
    pool: str
    set: str
    published: float | None
    figure: Figure | None = None
    rows: int | None = None  # of a figure: prompts of each task

    @property
    def command(self) -> str:
        """What runs this cell alone."""
        chosen = f"--method {self.label} --pool {self.pool} --set {self.set}"
        return f"python reproduce/paper/run.py {self.config} {chosen} --device cuda"


@dataclass(frozen=True)
class Plan:
    """Everything that is read: pools and sets by name, cells in order."""

    pools: dict[str, PoolSource]
    sets: dict[str, TaskSet]
    cells: tuple[Cell, ...]
    titles: dict[str, str]  # by config
    trainings: tuple["Training", ...] = ()

    def chosen(self, *, method: str | None = None, pool: str | None = None, set_name: str | None = None) -> "Plan":
        """The cells asked for; raises `ConfigError` where there is none."""
        asked = {"method": method, "pool": pool, "set": set_name}
        cells = tuple(
            cell
            for cell in self.cells
            if method in (None, cell.label) and pool in (None, cell.pool) and set_name in (None, cell.set)
        )
        trainings = tuple(one for one in self.trainings if method is set_name is None and pool in (None, one.name))
        if not cells and not trainings:
            there = ", ".join(f"{cell.label}/{cell.pool}/{cell.set}" for cell in self.cells)
            got = ", ".join(f"{name} {value}" for name, value in asked.items() if value)
            raise ConfigError(f"a cell (method/pool/set) of {there}", got, "Check --method, --pool and --set.")
        return Plan(self.pools, self.sets, cells, self.titles, trainings)

    def groups(self) -> Iterator[tuple[Cell, ...]]:
        """Cells of one config, pool and set: what one evaluation takes together."""
        by_key: dict[tuple[str, str, str], list[Cell]] = {}
        for cell in self.cells:
            by_key.setdefault((cell.config, cell.pool, cell.set), []).append(cell)
        return map(tuple, by_key.values())


def config_names() -> list[str]:
    """Every config, as the command takes it."""
    paths = [path for folder in ("table*", "figures", "train") for path in HERE.glob(f"{folder}/*.yaml")]
    return sorted(str(path.relative_to(HERE).with_suffix("")) for path in paths)


def read_plan(names: list[str]) -> Plan:
    """Read configs (`all` for every one) with the pools and sets they name; raises `ConfigError` naming the faults."""
    chosen = config_names() if names == ["all"] else names
    if unknown := [name for name in chosen if name not in config_names()]:
        raise ConfigError(f"configs of {', '.join(config_names())}, or all", ", ".join(unknown), "Check the spelling.")
    from fullrun.training_plan import read_training

    pools = read_config(HERE / "pools.yaml", _Pools).pools
    sets = _read_sets(sorted((HERE / "sets").glob("*.yaml")))
    tables = {name: read_config(HERE / f"{name}.yaml", TableConfig) for name in chosen if not name.startswith("train/")}
    trainings = tuple(read_training(name, sets) for name in chosen if name.startswith("train/"))
    cells = tuple(
        Cell(name, label, method, pool, set_name, published, table.figure, table.rows if table.figure else None)
        for name, table in tables.items()
        for label, method in table.methods.items()
        for pool, by_set in method.cells.items()
        for set_name, published in by_set.items()
    )
    if strangers := sorted({c.pool for c in cells} - pools.keys() | {c.set for c in cells} - sets.keys()):
        raise ConfigError("pools and sets that exist", ", ".join(strangers), "Mend the config.")
    if bad := [c.label for c in cells if not re.fullmatch(r"[A-Za-z0-9.+-]+", c.label)]:
        raise ConfigError("labels of letters, digits, '.', '+' and '-'", bad[0], "Mend the config.")
    return Plan(pools, sets, cells, {name: table.title for name, table in tables.items()}, trainings)


class _Pools(Config):
    pools: dict[str, PoolSource]


def _read_sets(paths: list[Path]) -> dict[str, TaskSet]:
    """Sets of tasks by name, those that are parts of another filled from it."""
    parts = {path for path in paths if "part_of:" in path.read_text("utf8")}
    sets = {path.stem: read_config(path, TaskSet) for path in paths if path not in parts}
    for path in sorted(parts):
        part = read_config(path, PartOfSet)
        whole = sets.get(part.part_of)
        lacking = part.tasks if whole is None else [name for name in part.tasks if name not in whole.tasks]
        if whole is None or lacking:
            got = f"{', '.join(lacking)} of {part.part_of}"
            raise ConfigError(f"tasks of a set that exists in {path}", got, "Mend the file.")
        sets[path.stem] = whole.model_copy(update={"tasks": {name: whole.tasks[name] for name in part.tasks}})
    return sets


def read_config(path: Path, form: type[_Read]) -> _Read:
    """A YAML file in the form of a config; raises `ConfigError` naming its faults."""
    try:
        return form.model_validate(yaml.safe_load(path.read_text("utf8")))
    except yaml.YAMLError as fault:
        raise ConfigError(f"YAML in {path}", " ".join(str(fault).split()), "Mend the file.") from fault
    except ValidationError as fault:
        raise ConfigError(f"a {form.__name__} in {path}", faults(fault), "Mend the file.") from fault
