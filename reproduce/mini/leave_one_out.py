"""Each expert out in turn: its own task's rows answered by the base and by the pool of all other experts.

    python reproduce/mini/leave_one_out.py WORK --results RESULTS [--rows 20] [--json]

WORK is the directory that `prepare.py` made, with a calibrated `pool`. For every expert a pool without it is made under
WORK/without and calibrated anew, and `glider evaluate` runs base and router over the rows of its task; what is there
already stays.
Prints for each task the shares of the verdicts, both scores and the share of rows that the pool answers worse.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from glider.cli.terminal import exit_code
from glider.experts.pool import Pool

ROUTERS = ("base", "glider")
COLUMNS = ("stranger", "unsure", "fits", "base", "pool", "worse", "better")
METRICS = {"hotpotqa": "squad"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = Pool.open(arguments.work / "pool").names
    for name in names:
        plan = plan_without(arguments.work, name, arguments.rows)
        out = arguments.results / name
        glider("evaluate", str(plan), "--out", str(out))
    table = {name: summary(arguments.results / name, name) for name in names}
    table["mean"] = {key: sum(row[key] for row in table.values()) / len(names) for key in COLUMNS}
    if arguments.json:
        print(json.dumps(table, indent=2))
        return
    printed = Table("expert left out", *COLUMNS, box=None)
    for name, row in table.items():
        printed.add_row(name, *(f"{100 * row[key]:.1f}" for key in COLUMNS))
    Console().print(printed)


def plan_without(work: Path, name: str, rows: int) -> Path:
    """A run file over the rows of the task `name`, with the pool of the other experts; both are made where missing."""
    plan = work / "without" / f"{name}.yaml"
    pool = work / "without" / name
    if plan.exists():
        return plan
    if pool.exists():  # a run was broken off before its file was written
        shutil.rmtree(pool)
    shutil.copytree(work / "pool", pool)
    Pool.open(pool).remove(name)
    glider("pool", "calibrate", str(pool))
    settings = {
        "pool": name,
        "seed": 0,
        "split": "test",
        "matmul": "medium",
        "max_new_tokens": 32,
        "routers": ["base", {"router": "glider", "descriptions": False}],
        "sets": {"left-out": {"rows": rows, "tasks": [f"../sets/held-in/{name}.jsonl.gz"]}},
        "metrics": {task: metric for task, metric in METRICS.items() if task == name},
    }
    plan.write_text(yaml.safe_dump(settings, sort_keys=False), "utf8")
    return plan


def glider(*words: str) -> None:
    """Run a command; what it prints goes to the error stream, beside the progress."""
    subprocess.run([sys.executable, "-m", "glider", *words], check=True, stdout=sys.stderr)


def summary(results: Path, name: str) -> dict[str, float]:
    """Shares of the verdicts and of the rows that the pool answers worse and better, and both mean scores."""
    files = [results / router / "left-out" / f"{name}.json" for router in ROUTERS]
    base, routed = (json.loads(file.read_text("utf8"))["results"] for file in files)
    if [row["id"] for row in base] != [row["id"] for row in routed]:
        raise SystemExit(f"{results}: base and pool on the same rows; remove the results and run again")
    count = len(base)
    verdicts = Counter(row["verdict"] for row in routed)
    pairs = [(before["score"], after["score"]) for before, after in zip(base, routed, strict=True)]
    return {verdict: verdicts[verdict] / count for verdict in COLUMNS[:3]} | {
        "base": sum(before for before, _ in pairs) / count,
        "pool": sum(after for _, after in pairs) / count,
        "worse": sum(after < before for before, after in pairs) / count,
        "better": sum(after > before for before, after in pairs) / count,
    }


if __name__ == "__main__":
    sys.exit(exit_code(main))
