"""Section 5.1's data step: the rows that an expert is trained on, from the hub and from a clone.

Written from documented fields, as `sources` is; it has not met the hub either. No evaluated row is among them: of a
data set that is evaluated on its training split (app_reviews) only what stands before those rows is taken.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullrun.hub import Hub
from fullrun.parquet_rows import batches_of
from fullrun.plan import TaskSource
from fullrun.readers import HubRow
from fullrun.sources import Fetch, Prompts, tables_of
from fullrun.training_plan import CategorySource, FlanSource
from glider.errors import DataError
from glider.files.opening import read_text

SUBMIXES = {name: f"conceptofmind/{name}_submix_original" for name in ("flan2021", "dialog")}
COLUMNS = ("inputs", "targets", "task_name", "template_type")
ZERO_SHOT = ("zs_opt", "zs_noopt")
CLONE = "natural-instructions"  # beside the downloads
_LARGEST_TASK = 1 << 30  # bytes of a file of instructions

Rows = list[dict[str, Any]]
Fit = Callable[[str, str], str]  # an input and its answer -> the beginning of the input that is trained on with it


@dataclass(frozen=True)
class FlanFiles:
    """The submixes of the Flan collection; of each the files are fetched once, for all of its tasks."""

    place: Path
    hub: Hub = Hub()

    def __call__(self, submix: str) -> Iterator[Sequence[HubRow]]:
        """Rows of a submix in batches, with `COLUMNS`."""
        name = SUBMIXES[submix]
        files = self.hub.parquet(name, None, "train")
        if not files:
            raise DataError(f"Parquet files of {name}", "none", "Check it on the hub.")
        folder = self.place / name.replace("/", "--")
        return batches_of([self.hub.fetch(file, folder / file.path) for file in files], COLUMNS)


def task_training_rows(task: TaskSource, most: int, fetch: Fetch, prompts: Prompts, fit: Fit, seed: int = 0) -> Rows:
    """At most so many rows of a task's training split, each under one template in turn.

    Rows without a right answer among their choices, or of which a template has nothing to ask, are left out; raises
    `DataError` for more of them than the task allows.
    """
    split, last = (task.train, None) if task.train is not None else (task.split[0], task.last or 0)
    if last == 0:
        expected, got = "training rows beside the evaluated ones", f"none in the split {split}"
        raise DataError(expected, got, "Leave the task out of training.")
    limit = most if last is None else None  # what is not evaluated stands before the last rows: all must be known

    def read(name: str, config: str | None) -> Sequence[HubRow]:
        return fetch(name, config, split, limit)

    tables = tables_of(task, read, prompts)
    count = min(min(len(table.rows) for table in tables) - (last or 0), most)
    if count < 1:
        raise DataError(f"training rows of {tables[0].where}", "none", "Check it on the hub.")
    places = [(tables[place % len(tables)], place) for place in range(count)]
    rows = [row for table, place in places for row in table.read(place)]
    if len(rows) < (1 - task.left_out) * count or not rows:
        got = f"{count - len(rows)} of {count} without, in {tables[0].where}"
        raise DataError("rows with their answer among the choices", got, "Read some of them.")
    random.Random(seed).shuffle(rows)
    return [_row(row["input"], row["output"], fit) for row in rows]


def flan_rows(
    tasks: Mapping[str, FlanSource], batches: Iterable[Sequence[HubRow]], most: int, fit: Fit
) -> dict[str, Rows]:
    """The first zero-shot rows of each task of a submix, whose rows lie in no order of tasks.

    Raises `DataError` for a task that has none, and for values that are no text.
    """
    by_name = {task.task: name for name, task in tasks.items()}
    rows: dict[str, Rows] = {name: [] for name in tasks}
    seen: set[str] = set()
    for batch in batches:
        for row in batch:
            _require_text(row)
            seen.add(row["task_name"])
            name = by_name.get(row["task_name"])
            if name is None or row["template_type"] not in ZERO_SHOT or len(rows[name]) >= most:
                continue
            if row["inputs"].strip() and row["targets"].strip():
                rows[name].append(_row(row["inputs"].strip(), row["targets"].strip(), fit))
        if all(len(of_task) >= most for of_task in rows.values()):
            break
    if empty := [f"{tasks[name].task}" for name, of_task in rows.items() if not of_task]:
        known = ", ".join(sorted(seen)[:12])
        raise DataError(f"zero-shot rows of {', '.join(empty)}", f"none; there are {known}", "Mend the names of tasks.")
    return rows


def category_rows(
    tasks: Mapping[str, CategorySource], clone: Path, most: int, fit: Fit, seed: int = 0
) -> dict[str, Rows]:
    """Rows of categories from the files `tasks/task*.json` of a clone, as many of each task as the others of it.

    The definition stands before the input. Raises `DataError` without a clone, and for files of other fields.
    """
    files = sorted((clone / "tasks").glob("task*.json"))
    if not files:
        remedy = f"git clone --depth 1 https://github.com/allenai/natural-instructions {clone}"
        raise DataError(f"a clone of natural-instructions at {clone}", "no tasks/task*.json", f"Run `{remedy}`.")
    by_category: dict[str, list[Path]] = {}
    for file in files:
        by_category.setdefault(_task_file(file)["Categories"][0], []).append(file)
    if lacking := sorted({task.category for task in tasks.values()} - by_category.keys()):
        known = ", ".join(sorted(by_category)[:12])
        raise DataError(f"tasks of {', '.join(lacking)} in {clone}", f"none; there are {known}", "Mend the category.")
    by_task: dict[str, Rows] = {}
    for name, task in tasks.items():
        parts = by_category[task.category]
        each = -(-most // len(parts))
        rows = [row for file in parts for row in _of_task(_task_file(file), each, fit, random.Random(seed))]
        random.Random(seed).shuffle(rows)
        by_task[name] = rows[:most]
    return by_task


def _task_file(file: Path) -> dict[str, Any]:
    try:
        task_file = json.loads(read_text(file, _LARGEST_TASK))
        if not (isinstance(task_file["Definition"], list) and isinstance(task_file["Categories"][0], str)):
            raise TypeError("Definition and Categories are lists of texts")
        return task_file | {"Instances": list(task_file["Instances"])}
    except (OSError, KeyError, TypeError, IndexError, ValueError) as fault:
        got = f"{type(fault).__name__}: {fault}"
        raise DataError(f"the documented fields in {file}", got, "Clone it anew.") from fault


def _of_task(task_file: Mapping[str, Any], most: int, fit: Fit, chance: random.Random) -> Rows:
    instances, definition = task_file["Instances"], task_file["Definition"][0].strip()
    drawn = chance.sample(instances, min(most, len(instances)))
    rows = [(one["input"].strip(), one["output"][0].strip()) for one in drawn]
    return [_row(f"{definition}\n\n{text}", answer, fit) for text, answer in rows if text and answer]


def _row(text: str, answer: str, fit: Fit) -> dict[str, Any]:
    return {"input": fit(text, answer), "output": answer}


def _require_text(row: HubRow) -> None:
    if other := [name for name in COLUMNS if not isinstance(row[name], str)]:
        got = ", ".join(f"{name}: {row[name]!r}"[:60] for name in other)
        raise DataError(f"texts in {', '.join(COLUMNS)}", got, "The data set changed.")


def as_lines(rows: Rows, task: str) -> str:
    """Rows as a file of `glider expert train`."""
    return "".join(json.dumps({"task": task, **row}, ensure_ascii=False) + "\n" for row in rows)
