"""Rows of P3, BIG-bench and Story Cloze as rows of this project.

Written from the documented fields of the data sets; it has not been run against the hub. Whatever does not have these
fields is an error that names the data set.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from fullrun.plan import FEWSHOT, BbhSource, BigBenchSource, P3Source, StoryClozeSource, TaskSet, TaskSource
from fullrun.story_prompts import STORY_PROMPTS
from glider.errors import DataError, MissingDependency
from glider.evaluation.run_plan import MOST_LEFT_OUT

P3, BIG_BENCH, BBH = "bigscience/P3", "tasksource/bigbench", "lukaemon/bbh"
FEWSHOT_SPLIT = "fewshot"  # as the files of rows have it; the evaluated ones are `test`
_ANSWER = "\nAnswer:"  # after every BIG-bench input, as published
_EMPTY = "<NO LABEL>"  # in place of an empty target, as published

HubRow = Mapping[str, Any]
Fetch = Callable[[str, str | None, str, int | None], Sequence[HubRow]]  # data set, config, split, rows at most
Shorten = Callable[[str, int], str]  # text, tokens with the end token


def from_hub(name: str, config: str | None, split: str, most: int | None = None) -> Sequence[HubRow]:
    """Rows of one split through `datasets`; with `most`, the first ones, streamed so that no whole file is fetched."""
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise MissingDependency("datasets", "read P3 and BIG-bench", "pip install 'glider-moe[eval]'") from None
    where = f"{name} ({config or 'its only config'}), split {split}"
    try:
        if most is not None:
            return list(islice(load_dataset(name, config, split=split, streaming=True), most))
        return load_dataset(name, config, split=split)  # pyright: ignore[reportReturnType]
    except (OSError, ValueError, RuntimeError) as fault:
        raise DataError(f"the data set {where}", " ".join(str(fault).split())[:300], "Check it on the hub.") from fault


def task_rows(task: TaskSource, tasks: TaskSet, fetch: Fetch, shorten: Shorten, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of a task that are evaluated (`split: test`), and a few-shot's for LoRAHub (`split: fewshot`).

    A few rows without a right answer among their choices are left out; raises `DataError` for more than 5 % of them,
    and for rows without the documented fields.
    """
    tables = [
        _Table(task, _Chain([fetch(name, config, split, None) for split in task.split]), config or name)
        for name, config in _tables(task)
    ]
    tables = _joined(task, tables)
    chosen, apart = _chosen(min(len(table.rows) for table in tables), task, tasks, seed)
    places = [
        (table, place)
        for turn, place in enumerate(chosen)
        for table in (tables if tasks.templates == "all" else [tables[turn % len(tables)]])
    ]
    rows = [row for table, place in places for row in table.read(place)]
    if len(rows) < (1 - MOST_LEFT_OUT) * len(places) or not rows:
        got = f"{len(places) - len(rows)} of {len(places)} without, in {tables[0].where}"
        raise DataError("rows with their answer among the choices", got, "Read some of them.")
    few = [row for place in apart for row in tables[0].read(place)] or _train_rows(task, fetch)
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

    def __init__(self, task: TaskSource, rows: Sequence[HubRow], where: str, prompt: int = 0):
        self.task, self.rows, self.where, self.prompt = task, rows, where, prompt

    def read(self, place: int) -> list[dict[str, Any]]:
        """The row at a place, or nothing where its answer is not among its choices."""
        try:
            row = _READ[type(self.task)](self.task, self.rows[place], self.prompt)
        except (KeyError, TypeError, IndexError) as fault:
            got = f"{type(fault).__name__}: {fault}"
            raise DataError(
                f"the documented fields in row {place} of {self.where}", got, "The data set changed."
            ) from fault
        by_choice = self.task.metric == "accuracy"
        if by_choice and not {row["output"], *row.get("references", ())} <= set(row.get("choices", ())):
            return []
        return [{**row, "id": f"{self.where}/{place}" + (f"/{self.prompt}" if self.prompt else "")}]


def _tables(task: TaskSource) -> list[tuple[str, str | None]]:
    """Data set and config of everything a task is read from."""
    if isinstance(task, P3Source):
        return [(P3, task.config(part, template)) for template in task.templates for part in task.parts]
    if isinstance(task, StoryClozeSource):
        return [(task.hub, None)]
    assert isinstance(task, BigBenchSource | BbhSource)
    return [(BIG_BENCH if isinstance(task, BigBenchSource) else BBH, task.name)]


def _joined(task: TaskSource, tables: list[_Table]) -> list[_Table]:
    """A table for each template: the parts of a data set together."""
    if isinstance(task, StoryClozeSource):
        return [_Table(task, tables[0].rows, tables[0].where, prompt) for prompt in range(len(STORY_PROMPTS))]
    if not isinstance(task, P3Source) or len(task.parts) == 1:
        return tables
    size = len(task.parts)
    groups = [tables[i : i + size] for i in range(0, len(tables), size)]
    return [_Table(task, _Chain([table.rows for table in group]), group[0].where) for group in groups]


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


def _train_rows(task: TaskSource, fetch: Fetch) -> list[dict[str, Any]]:
    """The first rows of the training split under the first template."""
    if task.train is None:
        return []
    name, config = _tables(task)[0]
    rows = fetch(name, config, task.train, FEWSHOT)
    table = _Table(task, rows, f"{config or name}/{task.train}")
    return [row for place in range(len(rows)) for row in table.read(place)]


def _p3(task: TaskSource, row: HubRow, prompt: int) -> dict[str, Any]:
    """`inputs_pretokenized`, `targets_pretokenized` (begins with a line break), `answer_choices`."""
    read = {"input": row["inputs_pretokenized"].strip(), "output": row["targets_pretokenized"].strip() or _EMPTY}
    if task.metric == "accuracy":
        read["choices"] = _without_repeats(choice.strip() for choice in row["answer_choices"] or ())
    return read


def _bigbench(task: TaskSource, row: HubRow, prompt: int) -> dict[str, Any]:
    """`inputs`, `targets`, and for choices `multiple_choice_targets` with `multiple_choice_scores`."""
    read: dict[str, Any] = {"input": row["inputs"] + _ANSWER}
    if task.metric == "accuracy":
        choices, scores = row["multiple_choice_targets"], row["multiple_choice_scores"]
        right = [choice for choice, score in zip(choices, scores, strict=True) if score == 1]
        longest = max(row["targets"], key=len)
        read |= {
            "output": longest if longest in choices else (right or [longest])[0],
            "choices": _without_repeats(choices),
        }
        return read | ({"references": right} if task.metrics == ("accuracy_multiple_ans",) and right else {})
    several = task.metrics == ("exact_match_multiple_ans",)
    return read | {"output": row["targets"][0]} | ({"references": list(row["targets"])} if several else {})


def _bbh(task: TaskSource, row: HubRow, prompt: int) -> dict[str, Any]:
    """`input`, `target`."""
    assert isinstance(task, BbhSource)
    read: dict[str, Any] = {"input": row["input"] + _ANSWER, "output": row["target"]}
    return read | ({"choices": list(task.choices)} if task.choices else {})


def _story_cloze(task: TaskSource, row: HubRow, prompt: int) -> dict[str, Any]:
    """`input_sentence_1` to `_4`, `sentence_quiz1` and `_2`, `answer_right_ending` (1 or 2)."""
    before, after = STORY_PROMPTS[prompt]
    story = "\n".join(row[f"input_sentence_{i}"] for i in range(1, 5))
    choices = [row["sentence_quiz1"], row["sentence_quiz2"]]
    text = f"{before}{story}{after}" + "\n- ".join(choices)
    return {"input": text, "output": choices[int(row["answer_right_ending"]) - 1], "choices": choices}


def _without_repeats(choices: Iterator[str] | Sequence[str]) -> list[str]:
    return list(dict.fromkeys(choices))


_READ: dict[type[TaskSource], Callable[[Any, HubRow, int], dict[str, Any]]] = {
    P3Source: _p3,
    BigBenchSource: _bigbench,
    BbhSource: _bbh,
    StoryClozeSource: _story_cloze,
}
