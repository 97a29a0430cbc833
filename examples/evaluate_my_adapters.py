"""What your adapters are worth, alone and as one model: from a directory of them and rows of their tasks to a table.

    python examples/evaluate_my_adapters.py ADAPTERS ROWS --base BASE --out my-pool

ADAPTERS has a PEFT adapter in each directory, ROWS a file NAME.jsonl for each of them. A fifth of the rows is kept from
everything else and is what the table is made of: the base alone, each adapter on its own task, and the pool by several
routers, with 95 % intervals and the share of rows made worse. The pool is ready to be served afterwards.
"""

import argparse
import json
import random
from pathlib import Path

import glider
from glider.calibration.threshold import calibrate
from glider.calibration.verdict import choose_thresholds
from glider.contribute.adopt import adopt
from glider.data.rows import Row, read_rows
from glider.evaluation.compare import compare
from glider.inference.base_model import load_base
from glider.inference.spec import BaseSpec


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("adapters", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--base", required=True)
    parser.add_argument("--out", type=Path, default=Path("my-pool"))
    parser.add_argument("--routers", default="base,arrow,phatgoose,glider")
    parser.add_argument("--gate-steps", type=int, default=100)
    given = parser.parse_args()
    spec, held_back = BaseSpec(base=given.base), []
    names = sorted(file.parent.name for file in given.adapters.glob("*/adapter_config.json"))
    for name in names:
        training, test = split(read_rows(given.rows / f"{name}.jsonl"))
        held_back += test
        if not (given.out / name).exists():
            rows = write(training, given.out.with_name(f"{given.out.name}-{name}.jsonl"))
            settings = glider.TrainConfig(gate_steps=given.gate_steps)
            adopt(str(given.adapters / name), spec, given.out / name, settings, data=rows)
    pool = calibrated(given.out, names, given.base)
    print(f"{len(pool)} adapters, {len(held_back)} rows that nothing was made of")
    for entry in compare(pool.path, held_back, given.routers.split(","), base=spec):
        beside = f"; beside the base {entry.harm.text}" if entry.harm is not None else ""
        score = f"{100 * entry.score:.1f} ({100 * entry.low:.1f} to {100 * entry.high:.1f})"
        print(f"{entry.router:>12}  {entry.metric} {score}{beside}")


def split(rows: list[Row], share: float = 0.2) -> tuple[list[Row], list[Row]]:
    """Rows to make gates and profiles of, and rows to judge by."""
    shuffled = random.Random(0).sample(rows, len(rows))
    count = max(1, int(share * len(rows)))
    return shuffled[count:], shuffled[:count]


def write(rows: list[Row], path: Path) -> Path:
    """Rows as a file."""
    path.write_text("\n".join(json.dumps({"input": row.input, "output": row.output}) for row in rows), "utf8")
    return path


def calibrated(path: Path, names: list[str], base: str) -> glider.Pool:
    """The pool of these experts, with the thresholds that it decides by."""
    if not (path / "pool.json").exists():
        glider.Pool.create(path, load_base(base).identity)
    pool = glider.Pool.open(path)
    for name in names:
        pool = pool if name in pool.names else pool.add(name)
    if len(pool) > 1:
        pool = pool.calibrate("examples", calibrate(pool, "examples"))
    return pool.set_verdicts(choose_thresholds(pool, pool.background))


if __name__ == "__main__":
    main()
