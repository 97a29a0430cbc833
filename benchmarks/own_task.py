"""How much does each expert of a pool add on its own task's test rows?

    python benchmarks/own_task.py POOL 'TASKS/{name}.jsonl.gz' [--rows 200] [--json out.json]

Tasks with choices: accuracy by length-normalised log-likelihood of the choices, end token included. Others: ROUGE-L of
the greedy answer (best of the references). Prints a row as each task is done; goes on from --json if interrupted.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from glider.cli.terminal import exit_code
from glider.data.rows import Row, read_rows
from glider.evaluation.evaluated_rows import EvaluatedRows
from glider.evaluation.task_rows import score_rows_of
from glider.files.disk import write_json
from glider.inference.model import RoutedModel
from glider.inference.spec import load, open_pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool")
    parser.add_argument("data", help="test rows; {name} stands for the expert")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--routers", default="base,single", help="`single` is the task's own expert")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    routers = arguments.routers.split(",")
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "json"}
    done = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    if done.get("settings", settings) != settings:
        sys.exit(f"{arguments.json} holds a run with other settings; remove it or give another file")
    results = done.get("tasks", {})
    for name in open_pool(arguments.pool).names:
        result = results.setdefault(name, {})
        rows = read_rows(arguments.data.replace("{name}", name), "test")
        rows = random.Random(arguments.seed).sample(rows, min(arguments.rows, len(rows)))
        for router in routers:
            if router not in result:
                model = load(pool=arguments.pool, router=f"single:{name}" if router == "single" else router)
                result[router] = mean_score(model, rows, f"{name} {router}")
                result["rows"], result["metric"] = len(rows), "accuracy" if rows[0].choices else "rougeL"
                if arguments.json:
                    write_json(arguments.json, {"settings": settings, "tasks": results})
        print(f"{name:>16} {result['metric']:>8} {len(rows):4d} rows  " + scores_of(result, routers), flush=True)
    means = {router: sum(result[router] for result in results.values()) / len(results) for router in routers}
    print(f"{'mean':>16} {'':>8} {'':4}       " + scores_of(means, routers))


def scores_of(result: dict, routers: list[str]) -> str:
    """The scores in percent points, then the gain of each router over the first."""
    first = result[routers[0]]
    gains = "".join(f"  {router} {100 * (result[router] - first):+.1f}" for router in routers[1:])
    return "  ".join(f"{router} {100 * result[router]:.1f}" for router in routers) + "  gain" + gains


def mean_score(model: RoutedModel, rows: list[Row], text: str) -> float:
    """Mean score of a model on rows of one task, in [0, 1]."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=len(rows))
        chosen = EvaluatedRows.of(rows)
        results = score_rows_of(model, chosen, None, 48, tick=lambda done: bar.update(task, completed=done))
    return sum(result.score for result in results) / len(rows)


if __name__ == "__main__":
    sys.exit(exit_code(main))
