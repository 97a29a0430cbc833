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
from glider.files.disk import write_file

ROW = ("id", "place", "score", "expert", "alpha", "verdict")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    kept = 0
    for file in sorted(arguments.results.rglob("*.json")):
        told = json.loads(file.read_text("utf8"))
        if "results" not in told and "fault" not in told:
            continue  # no cell
        task = told["config"]["task"]
        if task["description"] is not None and not task["description"].startswith("sha256:"):  # of a cell kept before
            task["description"] = "sha256:" + hashlib.sha256(task["description"].encode()).hexdigest()[:16]
        told["results"] = [{name: row[name] for name in ROW if name in row} for row in told.get("results", ())]
        text = json.dumps(told, ensure_ascii=False, separators=(",", ":")) + "\n"
        write_file(arguments.out / file.relative_to(arguments.results), partial(_write, text=text))
        kept += 1
    print(f"{kept} cells")


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf8")


if __name__ == "__main__":
    sys.exit(exit_code(main))
