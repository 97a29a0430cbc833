"""One row of each data set as a row of this project, by its documented fields."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fullrun.plan import BbhSource, BigBenchSource, P3Source, PromptedSource, TaskSource, TrecSource
from fullrun.prompts import Prompt

_ANSWER = "\nAnswer:"  # after every BIG-bench input, as published
_EMPTY = "<NO LABEL>"  # in place of an empty target, as published

HubRow = Mapping[str, Any]


def read_row(task: TaskSource, row: HubRow, prompt: Prompt | None, name: str) -> dict[str, Any] | None:
    """`input`, `output`, and where there are any `choices` and `references`.

    None where the template has nothing to ask of the row; `name` seeds what it draws. Raises `KeyError`, `TypeError`,
    `IndexError` or `ValueError` for a row without the fields.
    """
    if isinstance(task, PromptedSource):
        assert prompt is not None
        return _prompted(task, row, prompt, name)
    return _READ[type(task)](task, row)


def _p3(task: P3Source, row: HubRow) -> dict[str, Any]:
    """`inputs_pretokenized`, `targets_pretokenized` (begins with a line break), `answer_choices`."""
    read = {"input": row["inputs_pretokenized"].strip(), "output": row["targets_pretokenized"].strip() or _EMPTY}
    if task.metric == "accuracy":
        read["choices"] = _without_repeats(choice.strip() for choice in row["answer_choices"] or ())
    return read


def _prompted(task: PromptedSource, row: HubRow, prompt: Prompt, name: str) -> dict[str, Any] | None:
    """The fields that the template names, and all right answers where the task says how to find them.

    A row without any (DuoRC's questions without an answer) is right with what the template says then.
    """
    rendered = prompt.render(row, name)
    if rendered is None:
        return None
    read: dict[str, Any] = {"input": rendered.input, "output": rendered.output or _EMPTY}
    if task.metric == "accuracy":
        return read | {"choices": _without_repeats(rendered.choices or ())}
    answers: Any = row
    for step in task.answers:
        answers = answers[step]
    if task.answers and (several := [answers] if isinstance(answers, str) else list(answers)):
        read["references"] = _without_repeats(several)
    return read


def _trec(task: TrecSource, row: HubRow) -> dict[str, Any]:
    """`text`, `fine_label` (a number; `label-fine` in the data set's older form)."""
    label = row["fine_label"] if "fine_label" in row else row["label-fine"]
    text = f"Question: {row['text']}\nAnswer choices: {list(task.labels)}\nAnswer:"
    return {"input": text, "output": task.labels[label], "choices": list(task.labels)}


def _bigbench(task: BigBenchSource, row: HubRow) -> dict[str, Any]:
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


def _bbh(task: BbhSource, row: HubRow) -> dict[str, Any]:
    """`input`, `target`."""
    read: dict[str, Any] = {"input": row["input"] + _ANSWER, "output": row["target"]}
    return read | ({"choices": list(task.choices)} if task.choices else {})


def _without_repeats(choices: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(choices))


_READ: dict[type[TaskSource], Callable[[Any, HubRow], dict[str, Any]]] = {
    P3Source: _p3,
    TrecSource: _trec,
    BigBenchSource: _bigbench,
    BbhSource: _bbh,
}
