"""Train the gates of the miniature's experts anew with another seed, their LoRA as it is.

    python reproduce/mini/gates.py WORK --tasks TASKS --seed 1

Beside `pool`, which prepare.py laid out in WORK, appears `pool-seed1`: the same experts, with gates by the settings
that their cards tell, but for the seed: another order of rows. Goes on where it was interrupted.
"""

import argparse
import shutil
from pathlib import Path

from rich.progress import Progress

from glider.contribute.adopt import make_gates
from glider.contribute.settings import TrainConfig
from glider.experts.expert import Expert
from glider.experts.pool import Pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--expert", action="append", help="this one alone (repeatable); the pool is made without")
    arguments = parser.parse_args()
    source = Pool.open(arguments.work / "pool")
    out = arguments.work / f"pool-seed{arguments.seed}"
    out.mkdir(exist_ok=True)
    for name in arguments.expert or source.names:
        retrain(source[name], out / name, arguments.tasks / "t0_heldin" / f"{name}.jsonl.gz", arguments.seed)
    if arguments.expert is None:
        gather(source, out)


def retrain(expert: Expert, home: Path, data: Path, seed: int) -> None:
    """A copy of an expert with gates of another seed; a finished one is left alone."""
    config = TrainConfig(**{**expert.card.training["config"], "seed": seed})
    if not home.exists():
        shutil.copytree(expert.directory, home)
    told = Expert.open(home).card.training["gates"].get("config", {})
    if told.get("seed") == seed:
        return
    with Progress() as bar:
        steps = bar.add_task(expert.name, total=config.gate_steps)
        make_gates(
            home,
            data,
            "smollm2-135m",
            config,
            lambda stage, progress, count: bar.update(steps, completed=progress.step),
        )


def gather(source: Pool, out: Path) -> Pool:
    """The pool of the copies, with the calibrations of the source: they do not depend on gates."""
    (out / "pool.json").unlink(missing_ok=True)
    pool = Pool.create(out, source.experts[0].card.base)
    for name in source.names:
        pool = pool.add(name)
    for signal, calibration in source.index.calibrations.items():
        pool = pool.calibrate(signal, calibration, default=signal == source.index.signal)
    return pool


if __name__ == "__main__":
    main()
