"""The plan of a run: routers x tasks, read from one YAML file and checked before anything is loaded."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from glider.config import Config, repeated
from glider.contribute.fewshot_fits import fit_of
from glider.data.records import columns_of
from glider.data.rows import Row, read_rows
from glider.errors import ConfigError, DataError
from glider.evaluation.budgets import SMALLEST, USUAL
from glider.evaluation.evaluated_rows import EvaluatedRows
from glider.evaluation.lm_eval_tasks import task_name
from glider.evaluation.metrics import Metric, guessing, require
from glider.experts.pool import POOL_FILE, Pool
from glider.files.disk import canonical_json, sha256
from glider.files.json_text import read_json
from glider.files.opening import UnfitFile
from glider.files.yaml_text import faults_of_plan, read_yaml
from glider.routing.base import routers
from glider.routing.requirements import needs_results, outside
from glider.routing.specification import known_settings, router_from

FORMAT = 1  # of a result file; another number makes every cell new
MOST_LEFT_OUT = 0.05  # share of a task's rows that may lack choices by a fault of the source


class TaskPlan(Config):
    """One task. Missing settings are the set's, then the run's."""

    data: Path = Field(description="File of rows, or a path with wildcards.")
    name: str | None = Field(default=None, description="Name of the task. Default: the file's.")
    metric: Metric | None = Field(default=None, description="Metric of the task. Default: that in the run's `metrics`.")
    rows: int | None = Field(default=None, ge=1, description="Rows to evaluate. Default: the set's.")
    split: str | None = Field(default=None, description="Split to evaluate. Default: the set's.")
    append: str | None = Field(default=None, description="Text added to every input. Default: the set's.")
    max_new_tokens: int | None = Field(default=None, ge=1, description="Longest answer in tokens. Default: the set's.")


class SetPlan(Config):
    """Tasks whose mean is one number of the table. A path may hold wildcards."""

    tasks: tuple[str | TaskPlan, ...] = Field(min_length=1, description="Tasks: paths, or paths with settings.")
    exclude: tuple[str, ...] = Field(default=(), description="Names of tasks to leave out of what wildcards find.")
    rows: int | None = Field(default=None, ge=1, description="Rows of each task. Default: the run's.")
    split: str | None = Field(default=None, description="Split to evaluate. Default: the run's.")
    append: str | None = Field(default=None, description='Text added to every input, as "\\nAnswer:". Default: none.')
    max_new_tokens: int | None = Field(default=None, ge=1, description="Longest answer in tokens. Default: the run's.")


class RouterPlan(Config):
    """A router with its settings (`top_k` and `top_p` too) under its own name.

    `{task}` in the router stands for the task's name: `single:{task}` is each task's own expert, and tasks without one
    are left out. `lorahub` without weights searches them on `fewshot` rows of each task; its settings are then those of
    the search. `oracle` is the best single expert on these very rows. `examples` are drawn as few-shot rows are.
    """

    router: str = Field(description="Method, one of `glider routers`; `{task}` stands for the task's name.")
    settings: dict[str, Any] = Field(default={}, description="Settings of the router, or of lorahub's search.")
    name: str = Field(default="", description="Name in tables and on disk. Default: `router`.")
    descriptions: bool = Field(
        default=True, description="Embed the task's description; false: the query's own text is embedded."
    )
    examples: int = Field(default=0, ge=0, description="Rows of the task given with each query to the global term.")
    fewshot: int = Field(default=5, ge=1, description="Rows of each task on which lorahub searches its weights.")

    @property
    def label(self) -> str:
        """The name in tables and on disk."""
        return self.name or self.router

    @property
    def searched(self) -> bool:
        """Whether settings are searched for each task."""
        return fit_of(self.router, self.settings) is not None

    @property
    def of_results(self) -> bool:
        """Whether it chooses by the results of the single experts."""
        return needs_results(self.router, self.settings)

    @property
    def by_task(self) -> bool:
        """Whether every task has a router of its own."""
        return self.searched or "{task}" in self.router


class RunPlan(Config):
    """The run file. Paths are relative to it."""

    routers: tuple[str | RouterPlan, ...] = Field(min_length=1, description="Routers: names, or with settings.")
    sets: dict[str, SetPlan] = Field(min_length=1, description="Sets of tasks, by name.")
    pool: str = Field(default="demo", description="Directory of the pool, or demo for the embedded one.")
    require_key: Path | None = Field(
        default=None,
        description="File of public keys (PEM), one of which must have signed the pool. Default: $GLIDER_TRUSTED_KEYS.",
    )
    base: str | None = Field(default=None, min_length=1, description="Id or path of the base. Default: the pool's.")
    dtype: str = Field(default="float32", description="Storage and arithmetic: float32, bfloat16, float16.")
    matmul: Literal["highest", "high", "medium"] = Field(
        default="highest", description="Precision of float32 products: torch.set_float32_matmul_precision."
    )
    engine: Literal["transformers", "vllm"] = Field(default="transformers", description="What computes.")
    device: str = Field(default="cpu", description="Where the model runs; a run may be resumed on another device.")
    batch_tokens: int | Literal["auto"] = Field(
        default=USUAL.tokens,
        description="Tokens of prompts that run together; auto measures how many pay. A resumed run may have others.",
    )
    split: str | None = Field(default="test", description="Split to evaluate. Null: all rows.")
    columns: str = Field(
        default="", description="Columns of the rows, as input=question,output=answer. Default: the usual names."
    )
    rows: int | None = Field(default=None, ge=1, description="Rows of each task, drawn by the seed. Default: all.")
    seed: int = Field(default=0, description="Seed by which rows are drawn.")
    max_new_tokens: int = Field(default=64, ge=1, description="Longest answer in tokens.")
    metrics: dict[str, Metric] = Field(
        default={}, description="Metrics, by task. Default: accuracy for rows with choices, else rougeL."
    )
    descriptions: Path | None = Field(
        default=None, description="JSON file of one sentence for each task's name. Default: queries have none."
    )
    fewshot_splits: tuple[str, ...] = Field(
        default=("train", "val"),
        description="Splits of lorahub's rows and of examples, the first that has any; never an evaluated row.",
    )

    @field_validator("batch_tokens")
    @classmethod
    def _enough(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < SMALLEST:
            raise ValueError(f"at least {SMALLEST}, or auto")
        return value

    @classmethod
    def read(cls, path: Path) -> "RunPlan":
        """Read a run file; every fault of its form is reported together, as a `ConfigError`."""
        with faults_of_plan("a run file", "a run", "docs/evaluation.md", path):
            return cls.model_validate(read_yaml(path))

    def key_file(self, root: Path) -> str | None:
        """The file of the keys that are required, or None for those of the environment."""
        return None if self.require_key is None else str(root / self.require_key)

    def router_plans(self, root: Path, pool: Pool) -> list[RouterPlan]:
        """The routers in order, each checked by name and settings; before an oracle, the singles it chooses among."""
        requested = [RouterPlan(router=plan) if isinstance(plan, str) else plan for plan in self.routers]
        labels = [plan.label for plan in requested]
        if twice := repeated(labels):
            raise ConfigError("routers of different names", f"{', '.join(twice)} twice", "Give each a name.")
        plans = []
        for plan in requested:
            if plan.of_results:
                singles = (RouterPlan(router=f"single:{name}") for name in pool.names)
                plans += [single for single in singles if single.label not in labels]
            elif (place := outside(plan.router)) is not None:
                method = plan.router.partition(":")[0]
                plan = plan.model_copy(update={"router": f"{method}:{root / place}", "name": plan.label})
            if not plan.of_results and not plan.by_task:
                router_from(plan.router, plan.settings)
            elif (method := fit_of(plan.router, plan.settings)) is not None:
                method.check_fit(pool, **plan.settings)
            plans.append(plan)
        return plans

    def tasks(self, root: Path) -> list["Task"]:
        """Every task of every set with its settings resolved; names the faults of all of them together."""
        tasks, wrong = [], []
        described = {} if self.descriptions is None else read_descriptions(root / self.descriptions)
        for set_name, set_plan in self.sets.items():
            for entry in set_plan.tasks:
                plan = TaskPlan(data=Path(entry)) if isinstance(entry, str) else entry
                paths = matching(root, plan.data)
                if not paths:
                    wrong.append(f"no file {root / plan.data}")
                for path in paths:
                    name = plan.name or task_name(path)
                    if name not in set_plan.exclude:
                        tasks.append(self._task(set_name, name, path, set_plan, plan, described.get(name)))
        keys = [(task.set, task.name) for task in tasks]
        wrong += [f"{name} twice in {where}" for where, name in repeated(keys)]
        names = {task.name for task in tasks}
        wrong += [f"a metric for {name}, no task" for name in self.metrics if name not in names]
        if wrong:
            raise ConfigError("tasks without faults", "; ".join(wrong), "Mend the run file.")
        for metric in {task.metric for task in tasks if task.metric}:
            require(metric)
        return tasks

    def _task(
        self, where: str, name: str, path: Path, set_plan: SetPlan, plan: TaskPlan, description: str | None
    ) -> "Task":
        return Task(
            set=where,
            name=name,
            path=path,
            split=plan.split or set_plan.split or self.split,
            rows=plan.rows or set_plan.rows or self.rows,
            seed=self.seed,
            metric=plan.metric or self.metrics.get(name),
            append=plan.append or set_plan.append or "",
            max_new_tokens=plan.max_new_tokens or set_plan.max_new_tokens or self.max_new_tokens,
            description=description,
            columns=self.columns,
        )


@dataclass(frozen=True)
class Task:
    """One task of a run with everything resolved."""

    set: str
    name: str
    path: Path
    split: str | None
    rows: int | None
    seed: int
    metric: Metric | None
    append: str
    max_new_tokens: int
    description: str | None
    columns: str = ""

    def evaluated_rows(self) -> EvaluatedRows:
        """The rows to evaluate: the subset drawn by the seed, in the order of the file.

        A few rows of a choice task that lack choices are left out and counted; raises `DataError` for more of them, and
        for an output that is none of its choices, and `MissingDependency` without the package of the metric.
        """
        indexed = list(enumerate(read_rows(self.path, self.split, columns_of(self.columns))))
        by_choice = self.metric in (None, "accuracy") and any(row.choices for _, row in indexed)
        usable = [(i, row) for i, row in indexed if row.choices or not by_choice]
        left_out = len(indexed) - len(usable)
        if left_out > MOST_LEFT_OUT * len(indexed):
            raise DataError(f"rows of {self.path} with choices", f"{left_out} of {len(indexed)} without", "Split them.")
        if self.metric == "accuracy" and not by_choice:
            raise DataError(f"rows of {self.path} with choices, for accuracy", "none", "Give another metric.")
        guess = guessing([row for _, row in usable]) if by_choice else None
        if self.rows is not None and self.rows < len(usable):
            usable = sorted(random.Random(self.seed).sample(usable, self.rows))
        for i, row in usable:
            if by_choice and not {*row.accepted} <= {*(row.choices or ())}:
                raise DataError(f"the output of row {i} of {self.path} among its choices", row.output, "Mend the row.")
        metric: Metric = self.metric or ("accuracy" if by_choice else "rougeL")
        require(metric)
        rows = [row.model_copy(update={"input": row.input + self.append}) for _, row in usable]
        return EvaluatedRows(rows, [i for i, _ in usable], len(indexed), left_out, guess, metric)

    def fewshot(self, count: int, splits: Sequence[str]) -> list[Row]:
        """Rows of the first of `splits` that has any, none of them evaluated; raises `DataError` without."""
        evaluated = {(row.input, row.output) for row in self.evaluated_rows().rows}
        everything = read_rows(self.path, columns=columns_of(self.columns))
        for split in splits:
            rows = [
                row.model_copy(update={"input": row.input + self.append}) for row in everything if row.split == split
            ]
            rows = [row for row in rows if (row.input, row.output) not in evaluated]
            if rows:
                return random.Random(self.seed).sample(rows, min(count, len(rows)))
        raise DataError(f"few-shot rows of {self.path} ({', '.join(splits)})", "none", "Name another split.")

    def settings(self) -> dict[str, Any]:
        """The settings that decide the result, apart from the file's content."""
        names = ("set", "name", "split", "rows", "seed", "metric", "append", "max_new_tokens", "description")
        return {name: getattr(self, name) for name in names} | ({"columns": self.columns} if self.columns else {})


def pool_hash(pool: Pool) -> str:
    """sha256 of the pool's index, which holds the sha256 of every file of its experts."""
    return sha256(pool.path / POOL_FILE)


def cell_key(config: dict[str, Any], hashes: dict[str, str]) -> str:
    """The hash that identifies a finished cell; a changed default changes it.

    A renamed router is identified by its first name.
    """
    router = config["router"]
    settings = known_settings(router["router"], router["settings"])
    known = {**config, "router": {"router": routers.former(router["router"]), "settings": settings}}
    return hashlib.sha256(canonical_json([FORMAT, known, hashes]).encode()).hexdigest()


def without_place(router: str) -> str:
    """`multitask:PATH` with the name alone: an expert's path does not matter, and its hashes identify it."""
    place = outside(router)
    return router if place is None else f"{router.partition(':')[0]}:{place.name}"


def router_hashes(router: str) -> dict[str, str]:
    """sha256 of the files of an expert outside the pool (`multitask:PATH`)."""
    directory = outside(router)
    if directory is None or not directory.is_dir():
        return {}
    try:
        return {f"router/{file.name}": sha256(file) for file in sorted(directory.glob("*")) if file.is_file()}
    except (OSError, UnfitFile) as fault:
        raise ConfigError(f"the files of an expert at {directory}", str(fault), "Get it anew.") from fault


def read_descriptions(path: Path) -> dict[str, str]:
    """One sentence a task, from a JSON file; raises `ConfigError` for anything else."""
    try:
        descriptions = read_json(path)
    except (OSError, ValueError) as fault:
        raise ConfigError(f"JSON of task -> sentence at {path}", str(fault), "Check the file.") from fault
    if not isinstance(descriptions, dict) or not all(isinstance(text, str) for text in descriptions.values()):
        raise ConfigError(f"JSON of task -> sentence at {path}", "other values", "Write one sentence for a task.")
    return descriptions


def matching(root: Path, data: Path) -> list[Path]:
    """The file of a path relative to `root`, or the files that fit its wildcards, sorted; none if there are none.

    Raises `ConfigError` for a file whose name is no UTF-8, which no result could be saved under.
    """
    path = root / data
    if path.is_file():
        return [path]
    text = str(data)
    if not any(letter in text for letter in "*?["):
        return []
    anchor = Path(path.anchor) if data.is_absolute() else root
    files = sorted(anchor.glob(str(data.relative_to(data.anchor)) if data.is_absolute() else text))
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            raise ConfigError(f"names in UTF-8 of the files of {data}", str(file), "Rename it.") from None
    return files
