"""Every router on the embedded pool of eight, in one comparison: score, tokens a second, memory.

    python benchmarks/every_router.py TASKS --out FILE [--rows 2] [--train-rows 6] [--steps 3]

TASKS holds t0_heldin/NAME.jsonl.gz. What is trained is trained on few rows of the training split in a copy of the pool
(--work); the rows that are compared are short test rows of the tasks with choices. Few rows: the table shows that every
router runs and what it costs, not which is best.
"""

import argparse
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from glider.contribute.settings import RouterTraining
from glider.contribute.train_router import train_router
from glider.data.rows import Row, read_rows
from glider.demo.pool import DEMO_POOL
from glider.evaluation.compare import compare
from glider.experts.pool import Pool
from glider.inference.spec import BaseSpec, base_of

LONGEST = 400  # characters of an input
KINDS = ("vq", "seqr", "ariadne", "lorauter", "joint", "mindskip", "task-moe")
ROUTERS = (
    *("base", "single:paws", "merge", "merge(method=ties)", "merge(method=dare)", "mole(steps=2)"),
    "lorahub(budget=4, composition=products, scale=tokens)",
    *("phatgoose", "phatgoose-query", "arrow", "spectr", "seqr", "seqr(norms=white)", "seqr(norms=calibrated)", "lag"),
    *("glider", "glider(global=ariadne)", "glider(global=lorauter)", "glider+arrow", "glider+spectr", "glider+seqr"),
    *("glider+lag", "glider+joint", "glider+vq", "mor-lora", "retrieval", "adaptersoup"),
    *("loraretriever(by=descriptions)", "logo"),
    *("logo(signal=entropy)", "hilora", "per-task", "token-choice", "token-choice(normalise=sinkhorn)"),
    *("expert-choice", "expert-choice(normalise=sinkhorn)", "expert-choice(normalise=sparse)", "soft-moe", "joint"),
    *("vq", "mindskip", "task-moe", "oracle"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines, an entry each")
    parser.add_argument("--work", type=Path, required=True, help="where the copy of the pool lies")
    parser.add_argument("--rows", type=int, default=2, help="of each task")
    parser.add_argument("--train-rows", type=int, default=6, help="of each task")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    pool_path = arguments.work / "pool"
    if not pool_path.exists():
        shutil.copytree(DEMO_POOL, pool_path)
    pool = Pool.open(pool_path)
    every = {name: short_rows(arguments.tasks / "t0_heldin" / f"{name}.jsonl.gz") for name in pool.names}
    chosen: list[Row] = []
    for rows in every.values():
        chosen += [row for row in rows if row.split == "test" and 0 < len(row.choices or ()) <= 8][: arguments.rows]
    train = {name: [row for row in rows if row.split == "train"] for name, rows in every.items()}
    settings = RouterTraining.parse(
        steps=arguments.steps, batch_size=2, rows=arguments.train_rows, max_tokens=256, codes=16, learning_rate=0.02
    )
    spec = BaseSpec()
    base = spec.model_copy(update={"base": base_of(pool)}).load_base(base_of(pool))
    for kind in KINDS:
        if kind not in (pool.index.routers or {}):
            began = time.perf_counter()
            pool = train_router(base, pool, kind, train, settings)
            print(f"{kind}: {time.perf_counter() - began:.0f} s", flush=True)
    del base
    done = arguments.out.read_text("utf8").splitlines() if arguments.out.exists() else []
    known = {json.loads(line)["router"] for line in done}
    missing = [name for name in ROUTERS if name not in known]
    with arguments.out.open("a", encoding="utf8") as out:
        for entry in compare(pool_path, chosen, missing, fewshot=train["trec"][-5:]):
            out.write(json.dumps(asdict(entry)) + "\n")
            out.flush()
            print(f"{entry.router}: {100 * entry.score:.1f}, {entry.tokens_per_second:.0f} tokens/s", flush=True)


def short_rows(path: Path) -> list[Row]:
    """The shortest rows of a task, in order of length."""
    rows = [row for row in read_rows(path) if len(row.input) <= LONGEST]
    return sorted(rows, key=lambda row: len(row.input))


if __name__ == "__main__":
    main()
