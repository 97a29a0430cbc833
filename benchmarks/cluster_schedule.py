"""A hundred experts on M workers, simulated from recorded trainings: how far from the best possible end?

    python benchmarks/cluster_schedule.py [--experts 100] [--workers 1 2 4 8 16 32 64] [--overhead 0.0] [--seeds 20]
                                          [--json out.json]

Jobs are drawn with replacement from the trainings that the cards of the repository's two pools record. A worker takes
the next job when it is free, as on the cluster, in three orders: as drawn; the executor's own
(`jobs.travel.longest_first`) by the efforts that it would estimate, told by the tokens of the records; and the same by
the times themselves, which nobody knows beforehand: what lies between the last two is the estimate's and not the
order's. The end is compared with the best schedule that is found with all times known (the ratio to the best possible
one is at least that) and with a bound that no schedule undercuts (it is at most that). The recorded times are those of
a machine that others used: equal work took up to three times as long. --like makes them what the tokens say, as on
machines of one's own.
"""

import argparse
import heapq
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glider.cli.terminal import exit_code
from glider.jobs.travel import longest_first

ROOT = Path(__file__).parents[1]
POOLS = (ROOT / "reproduce" / "mini" / "experts", ROOT / "src" / "glider" / "demo" / "experts")
ORDERS = ("as drawn", "longest first", "times known")


@dataclass(frozen=True)
class Recorded:
    """A training that was: how long it took, and the effort by which it is put in order."""

    name: str
    seconds: float
    effort: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--overhead", type=float, default=0.0, help="seconds that a job takes beside its training")
    parser.add_argument("--like", action="store_true", help="jobs whose seconds are in proportion to their tokens")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    records = recorded()
    if arguments.like:
        rate = sum(record.seconds for record in records) / sum(record.effort for record in records)
        records = [replace(record, seconds=rate * record.effort) for record in records]
    told = []
    for workers in arguments.workers:
        found: dict[str, list[float]] = {order: [] for order in ORDERS}
        least: dict[str, list[float]] = {order: [] for order in ORDERS}
        for seed in range(arguments.seeds):
            jobs = random.Random(seed).choices(records, k=arguments.experts)
            jobs = [replace(job, seconds=job.seconds + arguments.overhead) for job in jobs]
            seconds = [job.seconds for job in jobs]
            known = longest_first([replace(job, effort=job.seconds) for job in jobs])
            for order, ordered in zip(ORDERS, (jobs, longest_first(jobs), known), strict=True):
                end = makespan([job.seconds for job in ordered], workers)
                found[order].append(end / best_found(seconds, workers))
                least[order].append(end / bound(seconds, workers))
        row = {"workers": workers, "to_best_found": {}, "to_bound": {}}
        for order in ORDERS:
            row["to_best_found"][order] = sum(found[order]) / len(found[order])
            row["to_bound"][order] = sum(least[order]) / len(least[order])
        told.append(row)
        shown = (f"{order} {row['to_best_found'][order]:.3f} to {row['to_bound'][order]:.3f}" for order in ORDERS)
        print(f"{workers:>3} workers: {'   '.join(shown)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"records": len(records), "rows": told}, indent=2) + "\n", "utf8")


def recorded() -> list[Recorded]:
    """The trainings of the repository's pools."""
    records = []
    for pool in POOLS:
        for path in sorted(pool.glob("*/card.json")):
            stages = [json.loads(path.read_text("utf8"))["training"][stage] for stage in ("lora", "gates")]
            seconds, tokens = (sum(stage[part] for stage in stages) for part in ("seconds", "tokens"))
            records.append(Recorded(path.parent.name, seconds, tokens))
    return records


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last job ends, if each goes to the worker that is free first."""
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def best_found(seconds: Sequence[float], workers: int) -> float:
    """The end of the best schedule that is found when every time is known: longest first, or bins filled in turn."""
    ordered = sorted(seconds, reverse=True)
    best = makespan(ordered, workers)
    low, high = bound(seconds, workers), best
    for _ in range(30):
        middle = (low + high) / 2
        if (end := _filled(ordered, workers, middle)) is None:
            low = middle
        else:
            best, high = min(best, end), middle
    return best


def _filled(ordered: Sequence[float], workers: int, most: float) -> float | None:
    """The end where each job, in turn, goes to the first worker that has room for it below `most`; None if none has."""
    loads = [0.0] * workers
    for each in ordered:
        place = next((i for i, load in enumerate(loads) if load + each <= most), None)
        if place is None:
            return None
        loads[place] += each
    return max(loads)


def bound(seconds: Sequence[float], workers: int) -> float:
    """No schedule ends earlier: the mean load; and of the k m + 1 longest jobs some k + 1 share a worker."""
    ordered, least = sorted(seconds, reverse=True), sum(seconds) / workers
    for k in range((len(ordered) - 1) // workers + 1):
        least = max(least, sum(ordered[k * workers - k + i] for i in range(k + 1)))
    return least


if __name__ == "__main__":
    sys.exit(exit_code(main))
