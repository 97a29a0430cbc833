"""Can the rows of a task file be trusted? Counts what would make its score mean nothing, and shows rows to read.

    python benchmarks/task_rows.py 'TASKS/*/*.jsonl.gz' [--split test] [--show 3] [--json out.json]

A line for each file and split: rows, labels with their shares, where the right choice stands, the score of always
answering the commonest label, and the faults found. With --show, rows of each label are printed in full.
"""

import argparse
import glob
import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

from glider.cli.terminal import exit_code
from glider.data.rows import Row, read_rows
from glider.errors import DataError
from glider.evaluation.lm_eval_tasks import task_name
from glider.files.disk import write_json

MOST_LABELS = 16  # a task with more of them has answers, not labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--split", help="this split only")
    parser.add_argument("--show", type=int, default=0, help="rows of each label to print")
    parser.add_argument("--chars", type=int, default=600, help="of a printed input")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    told = {}
    for path in sorted(Path(name) for pattern in arguments.files for name in glob.glob(pattern)):  # noqa: PTH207
        try:
            rows = read_rows(path, arguments.split)
        except DataError as fault:
            print(f"{path}: {fault}")
            continue
        by_split = defaultdict(list)
        for row in rows:
            by_split[row.split or "-"].append(row)
        for split, members in by_split.items():
            found = told[f"{path.parent.name}/{task_name(path)}/{split}"] = examined(members)
            print(f"{path.parent.name}/{task_name(path)}/{split}: {line(found)}", flush=True)
        for fault, count in across(by_split).items():
            print(f"{path.parent.name}/{task_name(path)}: {fault} {count}")
        if arguments.show:
            show(rows, arguments.show, arguments.chars)
    if arguments.json:
        write_json(arguments.json, told)


def examined(rows: list[Row]) -> dict:
    """Counts over the rows of one split."""
    outputs = Counter(row.output for row in rows)
    with_choices = [row for row in rows if row.choices]
    places = Counter(row.choices.index(row.output) for row in with_choices if row.choices and row.output in row.choices)
    faults = Counter(fault for row in rows for fault in faults_of(row))
    inputs = Counter(row.input for row in rows)
    answers = defaultdict(set)
    for row in rows:
        answers[row.input].add(row.output)
    faults["input twice"] = sum(count - 1 for count in inputs.values())
    faults["input with two outputs"] = sum(len(found) > 1 for found in answers.values())
    return {
        "rows": len(rows),
        "with_choices": len(with_choices),
        "labels": dict(outputs.most_common()) if len(outputs) <= MOST_LABELS else len(outputs),
        "choice_sets": len({row.choices for row in with_choices}),
        "gold_place": dict(sorted(places.items())),
        "commonest": outputs.most_common(1)[0][1] / len(rows),
        "faults": {fault: count for fault, count in faults.items() if count},
    }


def faults_of(row: Row) -> list[str]:
    """What is wrong with one row."""
    found = []
    if not row.input.strip() or row.input.strip() == "(no input)":
        found.append("empty input")
    if not row.output.strip():
        found.append("empty output")
    if row.output != row.output.strip() or row.input != row.input.strip():
        found.append("spaces at an end")
    if "{{" in row.input or "}}" in row.input or "|||" in row.input:
        found.append("template left in the input")
    if row.references and row.output not in row.references:
        found.append("output not in references")
    if row.choices is None:
        return found
    if row.output not in row.choices:
        found.append("output not in choices")
    if len(set(row.choices)) < len(row.choices):
        found.append("choice twice")
    if len({choice.strip().lower() for choice in row.choices}) < len(set(row.choices)):
        found.append("choices alike but for case")
    if len(row.choices) < 2:
        found.append("one choice")
    if any(not choice.strip() for choice in row.choices):
        found.append("empty choice")
    return found


def across(by_split: dict[str, list[Row]]) -> dict[str, int]:
    """Inputs that training and evaluation share."""
    train = {row.input for row in by_split.get("train", [])}
    return {
        f"inputs of train in {split}": shared
        for split, rows in by_split.items()
        if split != "train" and (shared := len(train & {row.input for row in rows}))
    }


def line(found: dict) -> str:
    """One line of `examined`."""
    labels, rows = found["labels"], found["rows"]
    shares = (
        f"{labels} answers"
        if isinstance(labels, int)
        else ", ".join(f"{label!r} {count / rows:.2f}" for label, count in labels.items())
    )
    total = sum(found["gold_place"].values())
    places = " ".join(f"{place}:{count / total:.2f}" for place, count in found["gold_place"].items())
    faults = "; ".join(f"{fault} {count}" for fault, count in found["faults"].items())
    gold = f" | gold {places} in {found['choice_sets']} choice sets" if total else ""
    return f"{rows} rows | {shares}{gold} | commonest {found['commonest']:.2f}" + (
        f" | FAULTS {faults}" if faults else ""
    )


def show(rows: list[Row], count: int, chars: int) -> None:
    """Print rows of each label (of all rows together where there are many)."""
    by_label = defaultdict(list)
    few = len({row.output for row in rows}) <= MOST_LABELS
    for row in rows:
        by_label[row.output if few else ""].append(row)
    for _, members in sorted(by_label.items()):
        for row in random.Random(0).sample(members, min(count, len(members))):
            print(json.dumps({"input": row.input[:chars], "choices": row.choices, "output": row.output}, indent=1,
                             ensure_ascii=False))  # fmt: skip


if __name__ == "__main__":
    sys.exit(exit_code(main))
