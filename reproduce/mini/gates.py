"""Train the gates of the miniature's experts anew by another seed, their LoRA as it is.

    python reproduce/mini/gates.py WORK --seed 1 [--pool pool-8]
    glider evaluate WORK/gates1.yaml --out RESULTS

Beside the pool that prepare.py laid out in WORK appears `pool-gates1` (`pool-8-gates1`): the same experts with gates by
the settings that their cards tell, but for the seed, which draws and orders the rows. An expert takes 2 to 6 minutes of
one core. Interrupted, it goes on; `--expert` makes one alone, so that several can be made at once.
"""

import argparse
import shutil
import sys
from pathlib import Path

from rich.progress import Progress

from glider.cli.terminal import exit_code
from glider.config import EMBEDDED_BASE
from glider.contribute.adopt import make_gates
from glider.contribute.settings import TrainConfig
from glider.experts.expert import Expert
from glider.experts.pool import POOL_FILE, Pool
from glider.files.disk import new_directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--pool", default="pool", help="the directory in WORK")
    parser.add_argument("--expert", help="make this one's gates and no pool")
    parser.add_argument("--base", default=EMBEDDED_BASE)
    arguments = parser.parse_args()
    source = Pool.open(arguments.work / arguments.pool)
    out = source.path.with_name(f"{arguments.pool}-gates{arguments.seed}")
    for name in source.names if arguments.expert is None else [arguments.expert]:
        data = arguments.work / "tasks/t0_heldin" / f"{name}.jsonl.gz"
        with_other_gates(source[name], out / name, data, arguments.base, arguments.seed)
    if arguments.expert is None:
        gather(source, out)


def with_other_gates(expert: Expert, home: Path, data: Path, base: str, seed: int) -> None:
    """A copy of an expert at `home` whose gates are another seed's; one that is there already is left alone."""
    config = TrainConfig(**{**expert.card.training["config"], "seed": seed})
    if not home.exists():
        with new_directory(home) as partial:
            shutil.copytree(expert.directory, partial, dirs_exist_ok=True)
    if gates_seed(Expert.open(home)) == seed:
        return
    with Progress() as bar:
        line = bar.add_task(expert.name, total=config.gate_steps)
        make_gates(home, data, base, config, lambda stage, progress, _: bar.update(line, completed=progress.step))


def gates_seed(expert: Expert) -> int | None:
    """The seed of gates that were made after the expert was trained."""
    seed = expert.card.training["gates"].get("config", {}).get("seed")
    return None if seed is None else int(seed)


def gather(source: Pool, out: Path) -> None:
    """The pool of the copies, in the source's order and with its calibrations, which do not depend on gates."""
    (out / POOL_FILE).unlink(missing_ok=True)
    pool = Pool.create(out, source.experts[0].card.base)
    for name in source.names:
        pool = pool.add(name)
    for signal, calibration in source.index.calibrations.items():
        pool = pool.calibrate(signal, calibration, default=signal == source.index.signal)


if __name__ == "__main__":
    sys.exit(exit_code(main))
