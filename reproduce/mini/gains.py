"""What each expert learnt: its own task's rows answered by the bare base and by the expert, all draws together.

    python reproduce/mini/gains.py reproduce/mini/results [--json]

Prints score and gain in percent, what guessing gives, and p of the expert against guessing (one-sided binomial test).
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from scipy import stats

from glider.cli.terminal import exit_code
from glider.report.cells import Results

DRAWS = ("", "-seed1", "-seed2")
COLUMNS = ("rows", "base", "expert", "gain", "guessing", "p")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    told = gains(Results.read(arguments.results))
    if arguments.json:
        print(json.dumps(told, indent=2))
        return
    table = Table("task", *COLUMNS, box=None)
    for task, one in sorted(told.items(), key=lambda item: -(item[1]["gain"] or 0.0)):
        table.add_row(task, *("-" if one[name] is None else f"{one[name]:.3g}" for name in COLUMNS))
    Console().print(table)


def gains(results: Results) -> dict[str, dict[str, float | None]]:
    """By task; `guessing` and `p` are None for open answers."""
    told = {}
    for task in results.sets["held-in"]:
        base, expert = (
            results.of([f"{name}{draw}" for draw in DRAWS], ("held-in", task)) for name in ("base", "own-expert")
        )
        if base is None or expert is None or base.rows.keys() != expert.rows.keys():
            raise SystemExit(f"base and own expert on the same rows of {task}: evaluate all draws of both")
        count, guess = len(expert.rows), expert.guess
        right = round(sum(expert.rows.values()))
        told[task] = {
            "rows": count,
            "base": 100 * base.score,
            "expert": 100 * expert.score,
            "gain": 100 * (expert.score - base.score),
            "guessing": None if guess is None else 100 * guess,
            "p": None if guess is None else float(stats.binomtest(right, count, guess, alternative="greater").pvalue),
        }
    return told


if __name__ == "__main__":
    sys.exit(exit_code(main))
