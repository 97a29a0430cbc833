"""Should an unsure query that is longer than what its nearest expert was trained on be left to the base?

    glider evaluate WORK/kinship.yaml --out RESULTS --router by-words      # and --router base
    python reproduce/mini/lengths.py RESULTS --tasks TASKS [--other by-words]

For each set: the mean of the task means where such queries have the base's score, for several limits (words of the
query over the most that any training input of that expert has), and the share of all rows that are left to the base.
"""

import argparse
import gzip
import json
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from glider.cli.terminal import exit_code

LIMITS = (0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)


class Row(NamedTuple):
    """An answered row: its task, its length beside what its expert knows, its score by the pool and by the base."""

    task: str
    unsure: bool
    ratio: float
    routed: float
    base: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--other", default="by-words")
    arguments = parser.parse_args()
    longest: dict[str, int] = {}
    for name in sorted(folder.name for folder in (arguments.results / arguments.other).iterdir()):
        rows = answered(arguments.results, arguments.other, name, arguments.tasks, longest)
        bare = mean(rows, 0.0, always=True)
        print(f"{name}: {len(rows)} rows, base {100 * bare:.1f}, pool {100 * mean(rows, float('inf')):.1f}")
        for limit in LIMITS:
            left = sum(row.unsure and row.ratio > limit for row in rows) / len(rows)
            print(f"  over {limit:.1f} to the base: {100 * mean(rows, limit):.1f} ({100 * left:.0f} % of the rows)")
        print(f"  tasks: by the pool, over {', over '.join(map(str, LIMITS))} to the base, by the base")
        for task in sorted({row.task for row in rows}):
            own = [row for row in rows if row.task == task]
            scores = [mean(own, limit) for limit in (float("inf"), *LIMITS)] + [mean(own, 0.0, always=True)]
            print(f"    {task}", *(f"{100 * score:.1f}" for score in scores))


def answered(results: Path, other: str, name: str, tasks: Path, longest: dict[str, int]) -> list[Row]:
    """The rows of one set; `longest` keeps the words of the experts' longest training inputs."""
    rows = []
    for file in sorted((results / other / name).glob("*.json")):
        cells = [json.loads((results / router / name / file.name).read_text("utf8")) for router in (other, "base")]
        words = {row["id"]: len(row["input"].split()) for row in task_rows(tasks, file.stem)}
        for routed, base in zip(*(cell["results"] for cell in cells), strict=True):
            assert routed["id"] == base["id"]
            if (expert := routed["expert"]) not in longest:
                inputs = (row["input"] for row in task_rows(tasks, expert) if row["split"] == "train")
                longest[expert] = max(len(text.split()) for text in inputs)
            ratio = words[routed["id"]] / longest[expert]
            rows.append(Row(file.stem, routed["verdict"] == "unsure", ratio, routed["score"], base["score"]))
    return rows


def task_rows(tasks: Path, name: str) -> list[dict[str, str]]:
    (source,) = tasks.glob(f"t0_*/{name}.jsonl.gz")
    with gzip.open(source, "rt", encoding="utf8") as lines:
        return [json.loads(line) for line in lines]


def mean(rows: list[Row], limit: float, always: bool = False) -> float:
    """The mean of the tasks' means, unsure rows beyond the limit by the base's score, or all of them."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        bare = always or (row.unsure and row.ratio > limit)
        scores.setdefault(row.task, []).append(row.base if bare else row.routed)
    return statistics.mean(statistics.mean(values) for values in scores.values())


if __name__ == "__main__":
    sys.exit(exit_code(main))
