"""Keep of evaluated cells what tables and tests need, without a word of the data.

    python reproduce/mini/keep.py RESULTS reproduce/mini/results

Every row keeps its id, place, score, the expert of the highest global score and alpha. Texts and likelihoods go, and
the task's description becomes its hash. `glider evaluate` takes kept cells for another's and makes its own.
"""

import argparse
import hashlib
import json
import sys
from functools import partial
from pathlib import Path

from glider.cli.terminal import exit_code
from glider.errors import DataError
from glider.evaluation.records import require_cell
from glider.files.disk import write_file
from glider.files.json_text import LARGEST_RESULT, MOST_OF_RESULT, read_json

ROW = ("id", "place", "score", "expert", "alpha", "verdict")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    kept = 0
    for file in sorted(arguments.results.rglob("*.json")):
        try:
            told = read_json(file, LARGEST_RESULT, MOST_OF_RESULT)
            if not isinstance(told, dict) or ("results" not in told and "fault" not in told):
                continue  # no cell
            require_cell(told)
        except ValueError as fault:
            raise DataError(f"a result in {file}", str(fault), "Evaluate that cell anew, or move it away.") from fault
        task = told["config"]["task"]
        description = task.get("description")
        if isinstance(description, str) and not description.startswith("sha256:"):  # of a cell kept before
            task["description"] = "sha256:" + hashlib.sha256(description.encode()).hexdigest()[:16]
        told["results"] = [{name: row[name] for name in ROW if name in row} for row in told.get("results", ())]
        text = json.dumps(told, ensure_ascii=False, separators=(",", ":")) + "\n"
        write_file(arguments.out / file.relative_to(arguments.results), partial(_write, text=text))
        kept += 1
    print(f"{kept} cells")


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf8")


if __name__ == "__main__":
    sys.exit(exit_code(main))
