"""How long jobs still take, and which gives its place: on a clock of the test's own."""

from collections import deque
from dataclasses import dataclass

from glider.jobs.base import silent
from glider.jobs.pacing import Paces, expected_end
from glider.jobs.ray_cluster import Need
from glider.jobs.ray_executor import Dispatch, RayExecutor
from glider.jobs.ray_seats import Running


@dataclass(eq=False)
class Timed:
    """A job that is thought to take `effort` seconds and takes `seconds`."""

    name: str
    effort: float
    seconds: float


class Clock:
    """The time, as the test sets it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def worked(clock: Clock, paces: Paces, job: Timed, start: float, seconds: float) -> None:
    """The job is sent out now, starts, works for so long and tells its share."""
    paces.send(job)
    clock.now += start
    paces.tell(job, 0.0)
    clock.now += seconds
    paces.tell(job, seconds / job.seconds)


def test_a_job_is_estimated_by_its_effort_until_its_own_pace_shows():
    clock = Clock()
    paces = Paces(clock=clock)
    slow, unknown = Timed("slow", 100, 300), Timed("unknown", 50, 50)
    assert paces.left(slow) == 100
    worked(clock, paces, slow, start=20, seconds=60)
    assert abs(paces.left(slow) - 240) < 1e-6
    assert abs(paces.left(unknown) - 150) < 1e-6  # as slow as what was seen
    clock.now += 40
    assert abs(paces.left(slow) - 200) < 1e-6  # it goes on
    paces.rest(slow)
    clock.now += 1000
    assert abs(paces.left(slow) - 240) < 1e-6  # it waits


def test_the_latest_pace_counts_most():
    clock = Clock()
    paces = Paces(clock=clock)
    job = Timed("job", 100, 100)
    worked(clock, paces, job, start=1, seconds=50)
    for share in (0.6, 0.7, 0.8, 0.9):
        clock.now += 40  # four times as slow
        paces.tell(job, share)
    assert 35 < paces.left(job) <= 40


def test_a_state_that_is_older_than_the_last_word_is_no_gain():
    clock = Clock()
    paces = Paces(clock=clock)
    job = Timed("job", 100, 100)
    worked(clock, paces, job, start=1, seconds=50)
    paces.send(job)
    clock.now += 10
    paces.tell(job, 0.2)
    assert paces.share(job) == 0.2 and abs(paces.left(job) - 80) < 1e-6


def test_a_job_gives_way_to_a_longer_one_where_the_end_depends_on_it():
    clock = Clock()
    paces = Paces(margin=2, clock=clock)
    job, other, longer = Timed("job", 100, 100), Timed("other", 100, 100), Timed("longer", 100, 100)
    assert not paces.gives_way(job, [job, other], [longer]), "nothing is known yet"
    worked(clock, paces, job, start=10, seconds=50)
    assert paces.gives_way(job, [job, other], [longer])
    assert not paces.gives_way(job, [job, other], [])
    assert not Paces.gives_way(paces, job, [job], [longer]), "one place is busy to the end in any order"
    clock.now += 46
    assert not paces.gives_way(job, [job, other], [longer]), "it is about to end"
    clock.now -= 46
    paces.margin = 6
    assert not paces.gives_way(job, [job, other], [longer]), "a start takes longer than is gained"


def test_no_job_gives_way_for_a_place_that_others_have():
    """A job that was sent and has no room yet is no second place, and would have the one that is given."""
    clock = Clock()
    job, sent, longer = Timed("job", 100, 100), Timed("sent", 100, 100), Timed("longer", 100, 100)
    dispatch = Dispatch(None, RayExecutor(), Need(1, 0), deque([longer]), silent)
    dispatch.paces = Paces(margin=2, clock=clock)
    worked(clock, dispatch.paces, job, start=10, seconds=50)
    dispatch.running = [Running(job, None, None, node="a node"), Running(sent, None, None)]
    assert dispatch.paces.gives_way(job, [job, sent], [longer]), "it would, for two places"
    dispatch._give_way(dispatch.running[0])
    assert [running.job for running in dispatch.running] == [job, sent] and list(dispatch.waiting) == [longer]


def test_the_effort_of_a_job_is_asked_once():
    """A training reads all of its rows to estimate it."""

    class Asked(Timed):
        asked = 0

        def __getattribute__(self, name: str) -> object:
            if name == "effort":
                Asked.asked += 1
            return super().__getattribute__(name)

    clock = Clock()
    paces = Paces(margin=2, clock=clock)
    job, other = Asked("job", 100, 100), Timed("other", 100, 100)
    worked(clock, paces, job, start=10, seconds=50)
    for _ in range(3):
        paces.longest([job, other])
        paces.gives_way(other, [other], [job])
        paces.tell(job, 0.6)
    assert Asked.asked == 1


def test_the_longest_is_first_and_equal_ones_keep_their_order():
    paces = Paces(clock=Clock())
    jobs = [Timed("a", 1, 1), Timed("b", 3, 3), Timed("c", 3, 3)]
    assert jobs[paces.longest(jobs)].name == "b"
    assert expected_end([5, 1], [3, 4]) == 8
