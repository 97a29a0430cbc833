"""What does a job cost beside its work on a cluster, and how much faster are two workers than one?

    python benchmarks/cluster_speed.py [--jobs 50] [--experts 8] [--steps 600] [--repeats 3] [--json out.json]

The cluster is a head and two nodes of one CPU on this machine; workers are warm. Overhead: jobs that do nothing but
have a folder of 100 kB that comes back, one after the other. Efficiency: tiny experts of one thread each, in pairs of
runs with one worker and with two; the median of their ratios, and the range. The local executor is beside it. Of a
machine that others use, seconds tell little: beside them is the work itself, the processor time of one worker over that
of the busier of two, which is what two cores of one's own would give.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from glider.cli.terminal import exit_code
from glider.contribute.build import PoolPlan, build_pool
from glider.jobs.base import Executor, JobTick, Resources, silent
from glider.jobs.local import LocalExecutor
from glider.jobs.parcel import Parcel
from glider.jobs.ray_executor import RayExecutor
from tiny_cluster import cluster_of, plan_of, tiny_base

CONTENT = b"x" * 100_000


@dataclass(frozen=True)
class Idle:
    """A job that does nothing and leaves a file."""

    place: Path
    name: str = "idle"
    key: str = ""
    finished: bool = False
    effort: float = 1.0

    reads, resources = (), Resources()

    @property
    def folder(self) -> Path:
        return self.place / "folder"

    def leaving(self) -> "Idle":
        return self

    def moved(self, places: Mapping[Path, Path], scratch: Path) -> "Idle":
        return replace(self, place=scratch)

    def run(self, report: JobTick = silent) -> None:
        self.folder.mkdir()
        (self.folder / "file").write_bytes(CONTENT)

    def take(self, content: Parcel) -> None:
        content.unpack(self.folder)

    def arrived(self, result: Any) -> Path:
        return self.folder

    def store(self, result: Path) -> None:
        (result / "file").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the local executor's, as a worker's
    with tempfile.TemporaryDirectory() as directory, cluster_of(2):
        root = Path(directory)
        told = {"overhead_ms": overhead(root, arguments.jobs)}
        print(f"a job that does nothing: {told['overhead_ms']:.1f} ms")
        names = [f"e{i}" for i in range(arguments.experts)]
        plan = plan_of(root, tiny_base(root / "base"), names, arguments.steps)
        build(plan, root / "warm", RayExecutor())  # both workers have loaded everything
        runs = []
        for number in range(arguments.repeats):
            before = processor_seconds()
            one = build(plan, root / f"one{number}", RayExecutor(workers=1))
            between = processor_seconds()
            two = build(plan, root / f"two{number}", RayExecutor(workers=2))
            after = processor_seconds()
            work_of_one = sum(seconds - before.get(pid, 0.0) for pid, seconds in between.items())
            work_of_two = max(seconds - between.get(pid, 0.0) for pid, seconds in after.items())
            here = build(plan, root / f"here{number}", LocalExecutor())
            runs.append({"local": here, "one": one, "two": two, "speedup": one / two, "over_local": one / here})
            runs[-1]["by_processor_time"] = work_of_one / work_of_two
            print(json.dumps({name: round(value, 2) for name, value in runs[-1].items()}), flush=True)
    speedups = [run["speedup"] for run in runs]
    told |= {"runs": runs, "speedup": statistics.median(speedups)}
    told["by_processor_time"] = statistics.median(run["by_processor_time"] for run in runs)
    print(
        f"two workers: {told['speedup']:.2f} times one ({min(speedups):.2f} to {max(speedups):.2f}); "
        f"by processor time {told['by_processor_time']:.2f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=2) + "\n", "utf8")


def overhead(root: Path, count: int) -> float:
    """Milliseconds of a job that does nothing, one after the other on one worker."""
    executor = RayExecutor(workers=1)
    list(executor.run([Idle(root / "warm-up")], silent))
    jobs = [Idle(root / f"idle{i}") for i in range(count)]
    began = time.perf_counter()
    for attempt in executor.run(jobs, silent):
        if attempt.fault is not None:
            raise SystemExit(attempt.fault.message)
        attempt.job.store(attempt.result)
    return 1000 * (time.perf_counter() - began) / count


def processor_seconds() -> dict[int, float]:
    """Of every worker that does jobs, by its process."""
    told = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "ray::glider" in " ".join(process.cmdline()) or "ray::IDLE" in " ".join(process.cmdline()):
                times = process.cpu_times()
                told[process.pid] = times.user + times.system
    return told


def build(plan: Path, pool: Path, executor: Executor) -> float:
    """Seconds of building all experts."""
    began = time.perf_counter()
    results = list(build_pool(PoolPlan.read(plan), plan.parent, pool, executor, silent))
    if failed := [result.message for result in results if result.status != "done"]:
        raise SystemExit("; ".join(failed))
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(exit_code(main))
