"""A hundred experts on M workers, simulated from recorded trainings: how far from the best possible end?

    python benchmarks/cluster_schedule.py [--experts 100] [--workers 1 2 4 8 16 32 64] [--start 20] [--every 120]
                                          [--seeds 20] [--like] [--json out.json]

Jobs are drawn with replacement from the trainings that the cards of the repository's two pools record. A worker takes
the next job when it is free, and each start of a job takes `--start` seconds, in four ways: as drawn; longest first
(`jobs.travel.longest_first`) by the efforts that the executor would estimate, told by the tokens of the records; the
executor's own, where a job besides gives its place, at a checkpoint, to one that has much longer to go (`jobs.pacing`);
and longest first by the times themselves, which nobody knows beforehand.

The end is compared with three others, of which all times are known: the best schedule that is found where each job is
done in one piece (the ratio to the best possible one is at least that), a bound that no such schedule undercuts (it is
at most that), and the larger of the mean load and the longest job, which no schedule at all undercuts and one whose
jobs change places at no cost attains. The recorded times are those of a machine that others used: equal work took up to
three times as long. --like makes them what the tokens say, as on machines of one's own.
"""

import argparse
import heapq
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glider.cli.terminal import exit_code
from glider.contribute.build import GATE_STEP
from glider.jobs.pacing import Paces
from glider.jobs.travel import longest_first

ROOT = Path(__file__).parents[1]
POOLS = (ROOT / "reproduce" / "mini" / "experts", ROOT / "src" / "glider" / "demo" / "experts")
WAYS = ("as drawn", "longest first", "with moves", "times known")
AGAINST = ("best found", "bound in one piece", "bound")


@dataclass(frozen=True, eq=False)
class Recorded:
    """A training that was: how long its stages took, the steps that they count as, and the effort that orders it."""

    name: str
    stages: tuple[tuple[float, int], ...]
    effort: float

    @property
    def seconds(self) -> float:
        """Of the whole training."""
        return sum(seconds for seconds, _ in self.stages)

    def share(self, done: float) -> float:
        """The share that the job tells after so many seconds of work: that of its steps."""
        steps, of = 0.0, sum(steps for _, steps in self.stages)
        for seconds, count in self.stages:
            steps += count * min(1.0, max(0.0, done / seconds))
            done -= seconds
        return steps / of

    def lasting(self, seconds: float) -> "Recorded":
        """The same job on a machine where it lasts so long."""
        return replace(self, stages=tuple((part * seconds / self.seconds, steps) for part, steps in self.stages))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--start", type=float, default=20.0, help="seconds that each start of a job takes")
    parser.add_argument("--every", type=float, default=120.0, help="seconds of work between two checkpoints")
    parser.add_argument("--like", action="store_true", help="jobs whose seconds are in proportion to their tokens")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    records = recorded()
    if arguments.like:
        rate = sum(record.seconds for record in records) / sum(record.effort for record in records)
        records = [record.lasting(rate * record.effort) for record in records]
    told = []
    for workers in arguments.workers:
        ends, moves = [], 0
        for seed in range(arguments.seeds):
            drawn = random.Random(seed).choices(records, k=arguments.experts)
            one, moved = compared([replace(job) for job in drawn], workers, arguments.start, arguments.every)
            ends.append(one)
            moves += moved
        row: dict = {"workers": workers, "moves": moves / len(ends)}
        for against in AGAINST:
            row[against] = {way: sum(one[way] / one[against] for one in ends) / len(ends) for way in WAYS}
        told.append(row)
        shown = (f"{way} {' '.join(f'{row[against][way]:.3f}' for against in AGAINST)}" for way in WAYS)
        print(f"{workers:>3} workers: {'   '.join(shown)}   {row['moves']:.0f} moves", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"records": len(records), "rows": told}, indent=2) + "\n", "utf8")


def recorded() -> list[Recorded]:
    """The trainings of the repository's pools."""
    records = []
    for pool in POOLS:
        for path in sorted(pool.glob("*/card.json")):
            lora, gates = (json.loads(path.read_text("utf8"))["training"][stage] for stage in ("lora", "gates"))
            took = ((lora["seconds"], lora["step"]), (gates["seconds"], GATE_STEP * gates["step"]))
            records.append(Recorded(path.parent.name, took, lora["tokens"] + gates["tokens"]))
    return records


def compared(jobs: Sequence[Recorded], workers: int, start: float, every: float) -> tuple[dict[str, float], int]:
    """The ends of all ways and of all that they are compared with, and how many moves there were."""
    seconds = [start + job.seconds for job in jobs]
    ordered = longest_first(jobs)
    cluster = Cluster(ordered, workers, start, every)
    ends = {
        "as drawn": makespan(seconds, workers),
        "longest first": makespan([start + job.seconds for job in ordered], workers),
        "with moves": cluster.run(),
        "times known": makespan(sorted(seconds, reverse=True), workers),
        "best found": best_found(seconds, workers),
        "bound in one piece": bound(seconds, workers),
        "bound": max(sum(seconds) / workers, *seconds),
    }
    return ends, cluster.moves


class Cluster:
    """The executor's own way: the decisions are `jobs.pacing`'s, the clock and the work are simulated."""

    def __init__(self, jobs: Sequence[Recorded], workers: int, start: float, every: float):
        self.start, self.every, self.now = start, every, 0.0
        self.moves = self.count = 0
        self.waiting, self.running = list(jobs), []
        self.done = dict.fromkeys(jobs, 0.0)
        self.paces = Paces(clock=lambda: self.now)
        self.events: list[tuple[float, int, Recorded, float]] = []  # when, which, whose, the work that is then done
        for _ in range(min(workers, len(jobs))):
            self._send()

    def run(self) -> float:
        """The end of the last job."""
        while self.events:
            self.now, _, job, done = heapq.heappop(self.events)
            saved, self.done[job] = done > self.done[job], done
            if done < job.seconds:
                self.paces.tell(job, job.share(done))
                if not (saved and self.paces.gives_way(job, self.running, self.waiting)):
                    self._after(job, 0.0, min(self.every, job.seconds - done))
                    continue
                self.paces.rest(job)
                self.waiting.append(job)
                self.moves += 1
            self.running.remove(job)
            if self.waiting:
                self._send()
        return self.now

    def _send(self) -> None:
        job = self.waiting.pop(self.paces.longest(self.waiting))
        self.running.append(job)
        self.paces.send(job)
        self._after(job, self.start, 0.0)

    def _after(self, job: Recorded, idle: float, work: float) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + idle + work, self.count, job, self.done[job] + work))


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
    low, high = sum(seconds) / workers, best
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
    """No schedule of jobs in one piece ends earlier: the mean load, of the k m + 1 longest some k + 1 on a worker, and
    every end by which the jobs would need more workers than there are."""
    ordered, least = sorted(seconds, reverse=True), sum(seconds) / workers
    for k in range((len(ordered) - 1) // workers + 1):
        least = max(least, sum(ordered[k * workers - k + i] for i in range(k + 1)))
    low, high = least, best_found(seconds, workers)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if _could_end(ordered, workers, middle) else (middle, high)
    return low


def _could_end(seconds: Sequence[float], workers: int, most: float) -> bool:
    """False where bounds of bin packing say that more workers are needed to end by `most`: Martello and Toth's L2, and
    Fekete and Schepers' functions u(k)."""
    for least in {0.0, *(each for each in seconds if each <= most / 2)}:
        alone = sum(each > most - least for each in seconds)
        middling = [each for each in seconds if most / 2 < each <= most - least]
        short = sum(each for each in seconds if least <= each <= most / 2)
        over = short - (len(middling) * most - sum(middling))
        if alone + len(middling) + max(0, math.ceil(over / most - 1e-9)) > workers:
            return False
    for k in range(1, 8):
        parts = [(k + 1) * each / most for each in seconds]
        needed = sum(part / (k + 1) if abs(part - round(part)) < 1e-9 else math.floor(part) / k for part in parts)
        if needed > workers + 1e-9:
            return False
    return True


if __name__ == "__main__":
    sys.exit(exit_code(main))
