"""Which rows of the hub's data sets a task takes, as rows of this project.

Written from the documented fields of the data sets; it has not been run against the hub. Whatever does not have these
fields is an error that names the data set.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from fullrun.plan import FEWSHOT, BbhSource, BigBenchSource, P3Source, PromptedSource, TaskSet, TaskSource, TrecSource
from fullrun.prompts import Prompt, read_prompts
from fullrun.readers import HubRow, read_row
from glider.errors import DataError, MissingDependency

P3, BIG_BENCH, BBH = "bigscience/P3", "tasksource/bigbench", "lukaemon/bbh"
FEWSHOT_SPLIT = "fewshot"  # as the files of rows have it; the evaluated ones are `test`
_PLAIN = "refs/convert/parquet"  # the hub's own copy of a data set that its authors keep as a script

Fetch = Callable[[str, str | None, str, int | None], Sequence[HubRow]]  # data set, config, split, rows at most
Shorten = Callable[[str, int], str]  # text, tokens with the end token
Prompts = Callable[[str], Mapping[str, Prompt]]  # promptsource's directory of a data set -> its templates by name


def from_hub(name: str, config: str | None, split: str, most: int | None = None) -> Sequence[HubRow]:
    """Rows of one split through `datasets`; with `most`, the first ones, streamed so that no whole file is fetched."""
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise MissingDependency("datasets", "read P3 and BIG-bench", "pip install 'glider-moe[eval]'") from None
    where = f"{name} ({config or 'its only config'}), split {split}"

    def load(**settings: Any) -> Any:
        if most is not None:
            return list(islice(load_dataset(name, config, split=split, streaming=True, **settings), most))
        return load_dataset(name, config, split=split, **settings)

    try:
        try:
            return load()
        except (
            RuntimeError
        ) as fault:  # a script, which newer versions of datasets do not run, and older ones should not
            if "script" not in str(fault):
                raise
            return load(revision=_PLAIN)
    except (OSError, ValueError, RuntimeError) as fault:
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
    tables = _tables(
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
        except (KeyError, TypeError, IndexError, ValueError) as fault:
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


def _tables(task: TaskSource, read: Callable[[str, str | None], Sequence[HubRow]], prompts: Prompts) -> list[_Table]:
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
