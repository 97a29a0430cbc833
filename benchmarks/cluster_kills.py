"""Kill a node of a cluster in the middle of building six experts, again and again: is one lost, or doubled, or other?

    python benchmarks/cluster_kills.py [--times 20] [--steps 300] [--seed 0] [--json out.json]

The cluster is a head and two nodes of one CPU on this machine, real processes all. In every round one of the two, drawn
at a report drawn, gets SIGKILL with all its workers; another one joins. The experts are compared, byte by byte, with
those that the local executor makes.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from glider.cli.terminal import exit_code
from glider.contribute.build import PoolPlan, build_pool
from glider.experts.pool import Pool
from glider.jobs.base import Executor, JobTick, silent
from glider.jobs.local import LocalExecutor
from glider.jobs.ray_executor import RayExecutor
from tiny_cluster import add_node, cluster_of, kill, plan_of, tiny_base

NAMES = ("one", "two", "three", "four", "five", "six")
FILES = ("adapter_config.json", "adapter_model.safetensors", "glider.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chance, rounds = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as directory, cluster_of(2) as cluster:
        root = Path(directory)
        plan = plan_of(root, tiny_base(root / "base"), NAMES, arguments.steps)
        build(plan, root / "here", LocalExecutor())
        nodes = sorted(cluster.worker_nodes, key=lambda node: node.unique_id)
        for number in range(arguments.times):
            rounds.append(one_round(plan, root / f"pool{number}", root / "here", cluster, nodes, chance))
            print(json.dumps(rounds[-1]), flush=True)
    told = {"rounds": rounds, "times": len(rounds), "whole": sum(each["whole"] for each in rounds)}
    told |= {"lost_jobs": sum(each["lost_jobs"] for each in rounds)}
    print(f"{told['whole']} of {told['times']} builds whole; {told['lost_jobs']} jobs were lost with a node")
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=2) + "\n", "utf8")
    raise SystemExit(told["whole"] != told["times"])


def one_round(plan: Path, pool: Path, wanted: Path, cluster: Any, nodes: list[Any], chance: random.Random) -> dict:
    """Build once, with one kill; `nodes` is then again those that live."""
    moment, victim = chance.randint(2, 9), chance.randrange(2)
    lost, reports, began = [], [0], time.monotonic()

    def report(name: str, text: str, share: float) -> None:
        if "tried again" in text:
            lost.append(name)
        reports[0] += 1
        if reports[0] == moment:
            kill(nodes[victim])
            nodes[victim] = add_node(cluster)

    ended = build(plan, pool, RayExecutor(save_steps=50), report)
    left = [path.name for path in pool.iterdir() if path.name.startswith(".") and not path.name.endswith(".lock")]
    whole = (
        sorted(ended) == sorted((name, "done") for name in NAMES)
        and sorted(Pool.open(pool).names) == sorted(NAMES)
        and content(pool) == content(wanted)
        and not left
    )
    return {"moment": moment, "lost_jobs": len(lost), "whole": whole, "seconds": round(time.monotonic() - began, 1)}


def build(plan: Path, pool: Path, executor: Executor, report: JobTick = silent) -> list[tuple[str, str]]:
    """Name and status of each expert, as they end."""
    results = build_pool(PoolPlan.read(plan), plan.parent, pool, executor, report)
    return [(result.job.name, result.status) for result in results]


def content(pool: Path) -> dict[str, bytes]:
    """The experts' files but the cards, which tell the time."""
    return {f"{name}/{file}": (pool / name / file).read_bytes() for name in NAMES for file in FILES}


if __name__ == "__main__":
    sys.exit(exit_code(main))
