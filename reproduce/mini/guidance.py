"""How often the global term found a query's own expert, and how often it was sure: from the rows of kept cells.

    python reproduce/mini/guidance.py reproduce/mini/results [--json]

For each router with a global term, the distinct rows of all its draws together: the share of held-in rows whose highest
global score is their own task's expert, the held-in tasks where that is so for less than half of the rows, and the
share of rows with the high alpha on each set.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from glider.cli.terminal import exit_code
from glider.report.cells import CellFile, Results

SETS = ("held-in", "near", "held-out", "bbh", "bbl")
ROUTERS = ("glider-paper", "glider-calibrated", "glider-text", "glider-both", "retrieval", "loraretriever")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    told = guidance(Results.read(arguments.results))
    if arguments.json:
        print(json.dumps(told, indent=2))
        return
    for router, one in told.items():
        sure = ", ".join(f"{name} {100 * share:.1f} %" for name, share in one["sure"].items()) or "-"
        print(f"{router}: own expert first {100 * one['found']:.1f} % of {one['rows']} held-in rows; sure: {sure}")
        if one["lost"]:
            print(f"    not for {', '.join(one['lost'])}")


def guidance(results: Results) -> dict[str, dict[str, Any]]:
    """The shares by router; `sure` is empty where a router has no alpha."""
    told = {}
    for router in ROUTERS:
        cells: dict[str, list[tuple[str, CellFile]]] = defaultdict(list)
        for (name, where, task), cell in results.cells.items():
            if re.fullmatch(rf"{router}(-seed\d)?", name) and cell.fault is None:
                cells[where].append((task, cell))
        found = {task: [row["expert"] == task for row in rows] for task, rows in distinct(cells["held-in"]).items()}
        rows = [own for each in found.values() for own in each]
        alphas = {name: [row["alpha"] for rows in distinct(cells[name]).values() for row in rows] for name in SETS}
        low = min((alpha for several in alphas.values() for alpha in several), default=0)
        high = max((alpha for several in alphas.values() for alpha in several), default=0)
        sure = {
            name: sum(alpha > low for alpha in several) / len(several) for name, several in alphas.items() if several
        }
        told[router] = {
            "rows": len(rows),
            "found": sum(rows) / len(rows),
            "lost": [task for task, each in found.items() if sum(each) < len(each) / 2],
            "sure": sure if low < high else {},
        }
    return told


def distinct(cells: list[tuple[str, CellFile]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each task, those of several draws once."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for task, cell in cells:
        found[task] |= {row["place"]: row for row in cell.record["results"]}
    return {task: list(rows.values()) for task, rows in found.items()}


if __name__ == "__main__":
    sys.exit(exit_code(main))
