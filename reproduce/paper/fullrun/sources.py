"""Which rows of the hub's data sets a task takes, as rows of this project.

Written from the documented fields of the data sets; it has not been run against the hub. Whatever does not have these
fields is an error that names the data set.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fullrun.hub import Hub
from fullrun.parquet_rows import ParquetRows, first_rows
from fullrun.plan import FEWSHOT, BbhSource, BigBenchSource, P3Source, PromptedSource, TaskSet, TaskSource, TrecSource
from fullrun.prompts import Prompt, read_prompts
from fullrun.readers import HubRow, read_row
from glider.errors import DataError, MissingDependency

P3, BIG_BENCH, BBH = "bigscience/P3", "tasksource/bigbench", "lukaemon/bbh"
FEWSHOT_SPLIT = "fewshot"  # as the files of rows have it; the evaluated ones are `test`

Fetch = Callable[[str, str | None, str, int | None], Sequence[HubRow]]  # data set, config, split, rows at most
Shorten = Callable[[str, int], str]  # text, tokens with the end token
Prompts = Callable[[str], Mapping[str, Prompt]]  # promptsource's directory of a data set -> its templates by name


@dataclass(frozen=True)
class FromHub:
    """Rows of the hub: of a whole split its files alone, kept in `place`; of its beginning what holds the first rows.

    A data set without Parquet files is streamed by `datasets`, split by split.
    """

    place: Path
    hub: Hub = Hub()

    def __call__(self, name: str, config: str | None, split: str, most: int | None = None) -> Sequence[HubRow]:
        files = self.hub.parquet(name, config, split)
        if not files:
            return _streamed(name, config, split, most)
        if most is not None:
            return first_rows(self.hub, files, most)
        if short := [file.path for file in files if "/partial-" in f"/{file.path}"]:
            wanted, got = f"the whole split {split} of {name}", f"its first 5 GB ({short[0]})"
            raise DataError(wanted, got, "The hub converted no more of it; read it in another way.")
        folder = self.place / name.replace("/", "--")
        return ParquetRows([self.hub.fetch(file, folder / file.path) for file in files])


def _streamed(name: str, config: str | None, split: str, most: int | None) -> Sequence[HubRow]:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise MissingDependency("datasets", "read P3 and BIG-bench", "pip install 'glider-moe[eval]'") from None
    try:
        return list(islice(load_dataset(name, config, split=split, streaming=True), most))
    except (OSError, ValueError, RuntimeError) as fault:
        where = f"{name} ({config or 'its only config'}), split {split}"
        raise DataError(f"the data set {where}", " ".join(str(fault).split())[:300], "Check it on the hub.") from fault


def task_rows(
    task: TaskSource,
    tasks: TaskSet,
    fetch: Fetch,
    shorten: Shorten,
    seed: int = 0,
    prompts: Prompts = read_prompts,
) -> list[dict[str, Any]]:
    """The rows of a task that are evaluated (`split: test`), and a few-shot's for LoRAHub (`split: fewshot`).

    A few rows without a right answer among their choices, or of which a template has nothing to ask, are left out;
    raises `DataError` for more of them than the task allows, and for rows without the documented fields.
    """
    tables = tables_of(
        task, lambda name, config: _Chain([fetch(name, config, split, None) for split in task.split]), prompts
    )
    chosen, apart = _chosen(min(len(table.rows) for table in tables), task, tasks, seed)
    places = [
        (table, place)
        for turn, place in enumerate(chosen)
        for table in (tables if tasks.templates == "all" else [tables[turn % len(tables)]])
    ]
    rows = [row for table, place in places for row in table.read(place)]
    if len(rows) < (1 - task.left_out) * len(places) or not rows:
        got = f"{len(places) - len(rows)} of {len(places)} without, in {tables[0].where}"
        raise DataError("rows with their answer among the choices", got, "Read some of them.")
    few = [row for place in apart for row in tables[0].read(place)] or _train_rows(task, fetch, tables[0].prompt)
    return [
        {
            **row,
            "input": row["input"] if task.max_input is None else shorten(row["input"], task.max_input),
            "split": split,
        }
        for part, split in ((rows, "test"), (few, FEWSHOT_SPLIT))
        for row in part
    ]


class _Chain(Sequence[HubRow]):
    """Several data sets as one, their rows read when asked for."""

    def __init__(self, parts: Sequence[Sequence[HubRow]]):
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, place: Any) -> Any:
        for part in self.parts:
            if place < len(part):
                return part[place]
            place -= len(part)
        raise IndexError(place)


class _Table:
    """The rows of one template (or of a data set that has but one form)."""

    def __init__(self, task: TaskSource, rows: Sequence[HubRow], where: str, prompt: Prompt | None = None):
        self.task, self.rows, self.where, self.prompt = task, rows, where, prompt

    def read(self, place: int) -> list[dict[str, Any]]:
        """The row at a place, or nothing where its answer is not among its choices, or there is nothing to ask."""
        name = f"{self.where}/{place}" + (f"/{self.prompt.name}" if self.prompt else "")
        try:
            row = read_row(self.task, self.rows[place], self.prompt, name)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as fault:
            got = f"{type(fault).__name__}: {fault}"
            raise DataError(
                f"the documented fields in row {place} of {self.where}", got, "The data set changed."
            ) from fault
        if row is None:
            return []
        by_choice = self.task.metric == "accuracy"
        if by_choice and not {row["output"], *row.get("references", ())} <= set(row.get("choices", ())):
            return []
        return [{**row, "id": name}]


def tables_of(task: TaskSource, read: Callable[[str, str | None], Sequence[HubRow]], prompts: Prompts) -> list[_Table]:
    """A table for each template, the parts of a data set together."""
    if isinstance(task, P3Source):
        named = [[task.config(part, template) for part in task.parts] for template in task.templates]
        return [_Table(task, _Chain([read(P3, name) for name in names]), names[0]) for names in named]
    name, config = _place(task)
    rows, where = read(name, config), config or name
    if not isinstance(task, PromptedSource):
        return [_Table(task, rows, where)]
    known = prompts(task.prompts)
    if lacking := [template for template in task.templates if template not in known]:
        got = f"none of {', '.join(lacking)}"
        raise DataError(f"the templates of {task.prompts} in promptsource", got, "Mend the set's file.")
    return [_Table(task, rows, name, known[template]) for template in task.templates]


def _place(task: TaskSource) -> tuple[str, str | None]:
    """Data set and config of a task, of P3's the first."""
    if isinstance(task, P3Source):
        return P3, task.config(task.parts[0], task.templates[0])
    if isinstance(task, PromptedSource):
        return task.hub, task.config
    if isinstance(task, TrecSource):
        return task.hub, None
    assert isinstance(task, BigBenchSource | BbhSource)
    return (BIG_BENCH if isinstance(task, BigBenchSource) else BBH), task.name


def _chosen(count: int, task: TaskSource, tasks: TaskSet, seed: int) -> tuple[list[int], list[int]]:
    """Places of the evaluated rows in order, and of those set apart for a few-shot where there is no training split."""
    first = 0 if task.last is None else max(0, count - task.last)
    places = list(range(first, count - int(tasks.held_back * (count - first))))
    chance = random.Random(seed)
    apart = sorted(chance.sample(places, min(FEWSHOT, len(places) // 2))) if task.train is None else []
    left = sorted(set(places) - set(apart))
    if tasks.most is not None and len(left) > tasks.most:
        left = sorted(chance.sample(left, tasks.most))
    return left, apart


def _train_rows(task: TaskSource, fetch: Fetch, prompt: Prompt | None) -> list[dict[str, Any]]:
    """The first rows of the training split under the first template."""
    if task.train is None:
        return []
    name, config = _place(task)
    rows = fetch(name, config, task.train, FEWSHOT)
    table = _Table(task, rows, f"{config or name}/{task.train}", prompt)
    return [row for place in range(len(rows)) for row in table.read(place)]
