"""How long jobs still take, as far as they show, and which gives its place to another.

Before a job runs its length is an estimate; a machine that others use may take three times as long for equal work.
While it runs it tells its share. A job that saved its state can therefore make room for one that has longer to go,
and go on later elsewhere: the jobs of a run then end together, however wrong the estimates were.
"""

import heapq
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MARGIN = 9.0  # times what a start takes: fewer moves, and as early an end, than by smaller ones
_KNOWN = 0.05  # of a job: from this share on its own pace counts
_HALF = 0.1  # of a job: what it gained so long ago counts half as much as what it gains now
_TO_END = 0.25  # of the margin
_SLACK = 1.05  # of the earliest end: what is expected to end by then is left as it is
_CAUTIOUS = 0.9  # of the paces that were seen are quicker than what is assumed of a job that has not begun


@dataclass
class Pace:
    """What one job has told of itself."""

    share: float = 0.0
    seconds: float = 0.0  # in which it gained so much, of late
    gained: float = 0.0
    sent: float = 0.0
    last: float | None = None  # when it last told its share; None: not since it was sent

    @property
    def whole(self) -> float | None:
        """Seconds of the whole job at its own pace, once that shows."""
        return self.seconds / self.gained if self.gained >= _KNOWN else None


class Paces:
    """The paces of the jobs of a run.

    Arguments:
        margin: A job gives its place to one that has longer to go by this many starts of a process.
        clock: Tells the time in seconds.
    """

    def __init__(self, margin: float = MARGIN, clock: Callable[[], float] = time.monotonic):
        self.margin, self.clock = margin, clock
        self.paces: dict[int, Pace] = {}
        self.efforts: dict[int, float] = {}  # as each job told once: it may read all of its rows for that
        self.rates: dict[int, float] = {}  # seconds for one unit of effort
        self.starts: list[float] = []

    def send(self, job: Any) -> None:
        """The job is sent out."""
        pace = self._of(job)
        pace.sent, pace.last = self.clock(), None

    def tell(self, job: Any, share: float) -> None:
        """The job tells its share. The first word after it was sent says how long its start took."""
        pace, now = self._of(job), self.clock()
        if pace.last is None:
            self.starts.append(now - pace.sent)
        elif share > pace.share:
            weight = 0.5 ** ((share - pace.share) / _HALF)
            pace.seconds = pace.seconds * weight + now - pace.last
            pace.gained = pace.gained * weight + share - pace.share
        pace.share, pace.last = share, now
        if pace.whole is not None and (effort := self._effort(job)) > 0:
            self.rates[id(job)] = pace.whole / effort

    def rest(self, job: Any) -> None:
        """The job waits again."""
        self._of(job).last = None

    def share(self, job: Any) -> float:
        """The share that it last told."""
        return self._of(job).share

    def left(self, job: Any) -> float:
        """Seconds that the job still takes: at its own pace, or else by its effort at one of the slower paces seen."""
        pace = self._of(job)
        since = 0.0 if pace.last is None else self.clock() - pace.last
        whole = self._effort(job) * self._slow() if pace.whole is None else pace.whole
        return max(0.0, whole * (1 - pace.share) - since)

    def longest(self, jobs: Sequence[Any]) -> int:
        """The place of the job with the longest to go, the first of equal ones."""
        lefts = [self.left(job) for job in jobs]
        return lefts.index(max(lefts))

    def gives_way(self, job: Any, running: Sequence[Any], waiting: Sequence[Any]) -> bool:
        """Whether a running job, whose state is saved, should make room for a waiting one.

        It should where all that is left would end late as it is, and a waiting job has longer to go by a margin. One
        that is about to end does so.
        """
        if not waiting or not self.starts or self._of(job).whole is None:
            return False
        margin, left = self.margin * statistics.median(self.starts), self.left(job)
        at_work, to_come = [self.left(one) for one in running], [self.left(one) for one in waiting]
        if left < _TO_END * margin or max(to_come) <= left + margin:
            return False
        earliest = max(sum(at_work + to_come) / len(at_work), *at_work, *to_come)
        return expected_end(at_work, to_come) > _SLACK * earliest

    def _of(self, job: Any) -> Pace:
        return self.paces.setdefault(id(job), Pace())

    def _effort(self, job: Any) -> float:
        if id(job) not in self.efforts:
            self.efforts[id(job)] = job.effort
        return self.efforts[id(job)]

    def _slow(self) -> float:
        rates = sorted(self.rates.values())
        return rates[min(len(rates) - 1, int(_CAUTIOUS * len(rates)))] if rates else 1.0


def expected_end(at_work: Sequence[float], to_come: Sequence[float]) -> float:
    """When the last job ends if each place, once free, takes the longest job to come."""
    free = list(at_work)
    heapq.heapify(free)
    for each in sorted(to_come, reverse=True):
        heapq.heapreplace(free, free[0] + each)
    return max(free)
