"""Three draws of rows together: means beside the base, and which near tasks lose to it beyond chance.

    python reproduce/mini/draws.py [--router glider-by-token] [--base base|phatgoose|...] [--unsure-base]

Reads the kept cells of `results` and `results-verdicts` beside this file: NAME, NAME-seed1 and NAME-seed2. p is that of
a paired permutation of a task's rows, in which a row that several draws have counts once, and then after Holm's
correction over the tasks. With --unsure-base the router's rows that do not fit have the base's scores, as
`--mode select --unsure base` in vLLM answers them.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from glider.cli.terminal import exit_code

HERE = Path(__file__).parent
SETS = ("held-in", "near", "held-out", "bbh", "bbl")
TRIALS = 20_000
POWER = 7.85  # (1.96 + 0.84)^2: to find a difference at 5 % four times in five

Cells = Mapping[str, Mapping[str, float]]  # a task's rows by their ids
Pairs = Sequence[tuple[Cells, Cells]]  # of the router and of what it is compared with, for each draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", default="glider-by-token")
    parser.add_argument("--base", default="base")
    parser.add_argument("--unsure-base", action="store_true", help="the base's score where the router's is of no fit")
    arguments = parser.parse_args()
    own_cells = fitting if arguments.unsure_base else cells
    sets = {
        name: [(own_cells(arguments.router + draw, name), cells(arguments.base + draw, name)) for draw in draws()]
        for name in SETS
    }
    for name, pairs in sets.items():
        print(name, *(f"{mean(own)} (base {mean(base)})" for own, base in pairs))
    for name, pairs in sets.items():
        print(f"{name}, all draws: {difference(pairs)}")
    print("near, difference to the base, rows, p, p after Holm")
    for task, change, rows, p, corrected in tested(sets["near"]):
        print(f"  {task} {change:+.1f} {rows} {p:.4f} {corrected:.3f}")


def difference(pairs: Pairs) -> str:
    """The mean difference over the rows that both have, how many would show it, and the share made worse."""
    both = [(own[task], base[task]) for own, base in pairs for task in own.keys() & base.keys()]
    every = [own[row] - base[row] for own, base in both for row in sorted(own)]
    if not every:
        return "-"
    mean_of_all, error = statistics.mean(every), statistics.stdev(every) / sqrt(len(every))
    needed = f"{POWER * len(every) * (error / mean_of_all) ** 2:.0f}" if mean_of_all else "any number of"
    worse = sum(one < 0 for one in every) / len(every)
    size = f"{100 * mean_of_all:+.1f}, standard error {100 * error:.1f}, {len(every)} rows"
    return f"{size}; {needed} needed; {worse:.0%} worse"


def draws() -> tuple[str, ...]:
    """What the names of the draws end in."""
    return "", "-seed1", "-seed2"


def cells(router: str, name: str) -> Cells:
    """The scores of a router on a set of tasks, wherever they are kept."""
    return {task: {row["id"]: row["score"] for row in rows} for task, rows in kept(router, name).items()}


def fitting(router: str, name: str) -> Cells:
    """The same, with the base's scores of rows that do not fit an expert."""
    draw = next((draw for draw in ("-40-0", *draws()) if draw and router.endswith(draw)), "")
    base = cells(f"base{draw}", name)
    return {
        task: {row["id"]: row["score"] if row["verdict"] == "fits" else base[task][row["id"]] for row in rows}
        for task, rows in kept(router, name).items()
    }


def kept(router: str, name: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of each task of a set."""
    files = [
        file for where in ("results", "results-verdicts") for file in (HERE / where / router / name).glob("*.json")
    ]
    return {file.stem: json.loads(file.read_text())["results"] for file in files}


def mean(tasks: Cells) -> str:
    """The mean of the tasks' means, in per cent."""
    means = [100 * sum(rows.values()) / len(rows) for rows in tasks.values()]
    return f"{sum(means) / len(means):.1f}" if means else "-"


def tested(pairs: Pairs) -> list[tuple[str, float, int, float, float]]:
    """Each task's mean difference over all draws, its rows, p, and p after Holm's correction; the clearest first."""
    differences: dict[str, dict[str, float]] = {}
    for own, base in pairs:
        for task in own.keys() & base.keys():
            rows = differences.setdefault(task, {})
            rows.update({row: score - base[task][row] for row, score in own[task].items() if row in base[task]})
    chance, results = random.Random(0), []
    for task, rows in sorted(differences.items()):
        values = [rows[row] for row in sorted(rows)]
        total = abs(sum(values)) - 1e-9
        hits = sum(abs(sum(v if chance.random() < 0.5 else -v for v in values)) >= total for _ in range(TRIALS))
        results.append((hits / TRIALS, task, 100 * sum(values) / len(values), len(values)))
    table, highest = [], 0.0
    for place, (p, task, difference, count) in enumerate(sorted(results)):
        highest = max(highest, min(1.0, p * (len(results) - place)))
        table.append((task, difference, count, p, highest))
    return table


if __name__ == "__main__":
    sys.exit(exit_code(main))
