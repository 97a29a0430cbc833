"""Every router on the embedded pool of eight, in one comparison: score, tokens a second, memory.

    python benchmarks/every_router.py TASKS --out FILE --work DIRECTORY [--rows 8] [--train-rows 8] [--steps 20]
    python benchmarks/every_router.py --table FILE

TASKS holds t0_heldin/NAME.jsonl.gz. What is trained is trained on few rows of the training split in a copy of the pool
(--work); the rows that are compared are short test rows of the tasks with choices. What is fitted on few rows of a task
(--fewshot of `glider compare`) is fitted on five of trec. Few rows: the table shows that every router runs and what it
costs, not which is best. Broken off, the same command goes on with the routers that the file lacks. Seconds a row are
processor time, of a process with one thread (OMP_NUM_THREADS=1): other work on the machine counts less in them.
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

from glider.cli.terminal import exit_code
from glider.contribute.settings import RouterTraining
from glider.contribute.train_router import train_router
from glider.data.rows import Row, read_rows
from glider.demo.pool import DEMO_POOL
from glider.evaluation.compare import compare
from glider.experts.pool import Pool
from glider.inference.spec import BaseSpec, base_of

LONGEST = 400  # characters of an input
MOST_CHOICES = 8
KINDS = ("vq", "seqr", "ariadne", "lorauter", "joint", "mindskip", "mindskip-attention", "task-moe")
ROUTERS = (
    *("base", "single:paws", "merge", "merge(method=ties)", "merge(method=dare)", "mole(steps=2)"),
    *("lorahub(budget=4)", "lorahub(budget=4, composition=products, scale=tokens)", "adaptersoup-task"),
    *("phatgoose", "phatgoose-query", "arrow", "spectr", "seqr", "seqr(norms=white)", "seqr(norms=calibrated)", "lag"),
    *("glider", "glider(global=ariadne)", "glider(global=lorauter)", "glider+arrow", "glider+spectr", "glider+seqr"),
    *("glider+lag", "glider+joint", "glider+vq", "mor-lora", "retrieval", "retrieval(by=examples)", "adaptersoup"),
    *("loraretriever", "loraretriever(composition=fusion)", "logo"),
    *("logo(signal=entropy)", "hilora", "per-task", "token-choice", "token-choice(normalise=sinkhorn)"),
    *("expert-choice", "expert-choice(normalise=sinkhorn)", "expert-choice(normalise=sparse)", "soft-moe", "joint"),
    *("vq", "mindskip", "mindskip-attention", "task-moe", "oracle"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, help="JSON Lines, an entry each")
    parser.add_argument("--work", type=Path, help="where the copy of the pool lies")
    parser.add_argument("--rows", type=int, default=8, help="of each task")
    parser.add_argument("--train-rows", type=int, default=8, help="of each task")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", help="these routers, by semicolon")
    parser.add_argument("--table", type=Path, help="print the table of a file, and run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return
    if not (arguments.tasks and arguments.out and arguments.work):
        parser.error("TASKS, --out and --work are needed")
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Train what is trained, then measure the routers that the file lacks."""
    pool_path = arguments.work / "pool"
    if not pool_path.exists():
        shutil.copytree(DEMO_POOL, pool_path)
    pool = Pool.open(pool_path)
    every = {name: short_rows(arguments.tasks / "t0_heldin" / f"{name}.jsonl.gz") for name in pool.names}
    chosen: list[Row] = []
    for rows in every.values():
        fitting = [row for row in rows if row.split == "test" and 0 < len(row.choices or ()) <= MOST_CHOICES]
        chosen += fitting[: arguments.rows]
    train = {name: [row for row in rows if row.split == "train"] for name, rows in every.items()}
    settings = RouterTraining.parse(
        steps=arguments.steps, batch_size=2, rows=arguments.train_rows, max_tokens=256, codes=16, learning_rate=0.02
    )
    spec = BaseSpec()
    base = spec.model_copy(update={"base": base_of(pool)}).load_base(base_of(pool))
    asked = [name for name in ROUTERS if not arguments.only or name in arguments.only.split(";")]
    for kind in KINDS:
        needed = any(trained_kind(name) == kind for name in asked)
        if needed and kind not in (pool.index.routers or {}):
            began = time.perf_counter()
            pool = train_router(base, pool, kind, train, settings)
            print(f"{kind}: {time.perf_counter() - began:.0f} s", flush=True)
    del base
    done = arguments.out.read_text("utf8").splitlines() if arguments.out.exists() else []
    known = {json.loads(line)["router"] for line in done}
    missing = [name for name in asked if name not in known]
    clock = RowClock()
    with arguments.out.open("a", encoding="utf8") as out:
        for entry in compare(pool_path, chosen, missing, fewshot=train["trec"][-5:], tick=clock.tick):
            seconds = clock.seconds_a_row(entry.note or entry.router)
            out.write(json.dumps({**asdict(entry), "cpu_seconds_a_row": seconds}) + "\n")
            out.flush()
            print(f"{entry.router}: {100 * entry.score:.1f}, {entry.tokens_per_second:.0f} tokens/s", flush=True)


def trained_kind(router: str) -> str | None:
    """What has to be trained before a router can run."""
    if router == "seqr(norms=calibrated)":
        return "seqr"
    name = router.removeprefix("glider(global=").rstrip(")").removeprefix("glider+")
    return name if name in KINDS and name != "seqr" else None


class RowClock:
    """Processor time of each router's rows, from the end of its first batch to that of its last."""

    def __init__(self) -> None:
        self.first: dict[str, tuple[int, float]] = {}
        self.last: dict[str, tuple[int, float]] = {}

    def tick(self, router: str, rows: int) -> None:
        """Note that so many rows of a router are done."""
        now = (rows, time.process_time())
        if rows <= self.last.get(router, (0, 0.0))[0]:  # it begins anew
            self.first.pop(router)
        self.first.setdefault(router, now)
        self.last[router] = now

    def seconds_a_row(self, router: str) -> float | None:
        """The mean of all rows but the first batch's; None where there was one batch."""
        (rows, began), (all_rows, ended) = self.first[router], self.last[router]
        return (ended - began) / (all_rows - rows) if all_rows > rows else None


def table(file: Path) -> str:
    """The table of the docs."""
    lines = ["| router | accuracy | tokens/s | processor ms a row | experts MB |", "|---|---|---|---|---|"]
    entries = {entry["router"]: entry for entry in map(json.loads, file.read_text("utf8").splitlines())}
    for name in (name for name in ROUTERS if name in entries):
        entry = entries[name]
        figures = f"{100 * entry['score']:.1f} | {entry['tokens_per_second']:.0f}"
        seconds = entry["cpu_seconds_a_row"]
        cost = f"{'' if seconds is None else f'{1000 * seconds:.0f}'} | {entry['expert_megabytes']:.1f}"
        lines.append(f"| `{name}` | {figures} | {cost} |")
    return "\n".join(lines)


def short_rows(path: Path) -> list[Row]:
    """The shortest rows of a task, in order of length."""
    rows = [row for row in read_rows(path) if len(row.input) <= LONGEST]
    return sorted(rows, key=lambda row: len(row.input))


if __name__ == "__main__":
    sys.exit(exit_code(main))
