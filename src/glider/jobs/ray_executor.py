"""Jobs on a Ray cluster: each a task with the resources it declares, or work for an actor that keeps its base model.

Ray starts nothing a second time here: what a task has begun comes back as checkpoints, and this process, the driver,
sends it out again with the last of them. The driver alone writes; nodes need no file system in common.
"""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from glider.errors import ConfigError, GliderError, GliderWarning
from glider.jobs.base import Attempt, Fault, JobTick
from glider.jobs.pacing import MARGIN, Paces
from glider.jobs.parcel import Parcel
from glider.jobs.ray_cluster import Need, await_room, connected, telling_of_no_node
from glider.jobs.ray_node import Begun, Checkpoint, Ended, Order, Progress, Shipment, Warned, work
from glider.jobs.ray_seats import UNKNOWN, Running, Seats
from glider.jobs.travel import longest_first

Files = Literal["store", "path"]
_PATIENCE = 2.0  # seconds between two looks at the nodes
_END_PATIENCE = 15.0  # seconds for what was stopped to be gone


@dataclass(frozen=True)
class RayExecutor:
    """Runs jobs on the nodes of a cluster.

    Arguments:
        address: Of the cluster; None is what `ray.init()` finds, or a new one on this machine.
        workers: Jobs at a time; None is as many as there is room for.
        cpus, gpus: What each job takes of a node; a job computes with `cpus` threads where it names none itself.
        files: What jobs read is sent to them ("store"), or lies at a path that every node can read ("path").
        keep: Let actors do the jobs, each of which keeps what it has loaded, such as a base model.
        losses: How often a job may lose its node, or its process, without coming further in between.
        save_steps: Training steps between two checkpoints that come back; after two minutes one comes anyway.
        margin: At a checkpoint a job gives its place to one that has longer to go by this many starts of a job.
        setup: Is called in a job's process before the job, such as to register what is not part of glider.
        autoscaling: Nodes come when jobs wait for them; else a job that no node can run is refused at once.
    """

    address: str | None = None
    workers: int | None = None
    cpus: float = 1
    gpus: float = 0
    files: Files = "store"
    keep: bool = False
    losses: int = 5
    save_steps: int = 100
    margin: float = MARGIN
    autoscaling: bool = False
    setup: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("workers", self.workers, 1), ("save_steps", self.save_steps, 1)):
            if value is not None and value < least:
                raise ConfigError(f"{name} of {least} or more", str(value), f"Give {least} or more.")
        if self.autoscaling and self.keep and self.workers is None:
            remedy = "Say how many workers the cluster may grow to: --workers."
            raise ConfigError("a number of workers, each with a base model", "--autoscaling without it", remedy)
        if self.cpus <= 0 or self.gpus < 0:
            raise ConfigError("CPUs above 0 and GPUs of 0 or more", f"{self.cpus:g}, {self.gpus:g}", "Give others.")

    def run(self, jobs: Sequence[Any], report: JobTick) -> Iterator[Attempt]:
        """Run them, the longest first; attempts come as they end. Stopped in any way, nothing goes on on the cluster.

        Raises `ConfigError` where there is no cluster, or no node that could run such a job.
        """
        if not jobs:
            return
        with connected(self.address) as ray:
            need = Need(self.cpus, self.gpus)
            if not self.autoscaling:
                need.require(ray)
            self.require_device([job.resources.device for job in jobs])
            await_room(ray, need)
            dispatch = Dispatch(ray, self, need, deque(longest_first(jobs)), report)
            try:
                with telling_of_no_node(ray, need):
                    yield from dispatch.run()
            finally:
                dispatch.stop()

    def require_device(self, devices: Sequence[str]) -> None:
        """Raise `ConfigError` for a device that jobs do not get, and for a GPU that they would not use."""
        devices = sorted(set(devices))
        if any(device != "cpu" for device in devices) and not self.gpus:
            remedy = "Say how many GPUs a job takes: --gpus-per-job 1."
            raise ConfigError(f"GPUs for jobs on {', '.join(devices)}", "none asked for", remedy)
        if "cpu" in devices and self.gpus:
            remedy = "Give --device cuda, or leave --gpus-per-job out."
            raise ConfigError(f"jobs that use their {self.gpus:g} GPU", "jobs on the device cpu", remedy)

    @property
    def threads(self) -> int:
        """Threads of a job that names none."""
        return max(1, int(self.cpus))


@dataclass
class Dispatch:
    """One run of an executor: what waits, what runs, who is idle."""

    ray: Any
    executor: RayExecutor
    need: Need
    waiting: deque[Any]
    report: JobTick
    running: list[Running] = field(default_factory=list)
    paces: Paces = field(init=False)
    seats: Seats = field(init=False)  # where actors do the jobs
    losses: dict[int, int] = field(default_factory=dict)  # by the job's identity, since its last checkpoint
    shipped: dict[Any, Shipment] = field(default_factory=dict)
    looked: float = 0.0
    room: int = 0
    _remote: Any = None

    def __post_init__(self) -> None:
        self.seats = Seats(self.ray, self.take)
        self.paces = Paces(self.executor.margin)

    def run(self) -> Iterator[Attempt]:
        """Attempts, as they end."""
        while self.waiting or self.running:
            yield from self._fill()
            references = {word: running for running in self.running for word in (running.messages, running.end)}
            if not references and not self.seats.coming:
                if self.waiting:  # the last node that could run one is gone
                    self.report(self.waiting[0].name, "waiting for a node", 0.0)
                    time.sleep(_PATIENCE)
                continue
            for word in self.ray.wait([*references, *self.seats.coming], num_returns=1, timeout=_PATIENCE)[0]:
                yield from self._hear(references[word]) if word in references else self._seat(word)

    def stop(self) -> None:
        """Let nothing of it go on, and wait until it does not."""
        for running in self.running:
            running.stop(self.ray)
        self.seats.close()
        if ends := [running.end for running in self.running]:
            self.ray.wait(ends, num_returns=len(ends), timeout=_END_PATIENCE)
        self.running.clear()

    @property
    def take(self) -> dict[str, float]:
        """What a job takes of a node, as Ray names it."""
        return {"num_cpus": self.need.cpus, "num_gpus": self.need.gpus}

    def _fill(self) -> Iterator[Attempt]:
        """Send out what there is room for."""
        if self.executor.keep:
            self.seats.ask(min(len(self.waiting), self._most() - len(self.running)))
        while self.waiting and (self.seats.idle if self.executor.keep else len(self.running) < self._most()):
            job = self._next()
            try:
                self._start(job)
            except GliderError as error:
                yield Attempt(job, fault=Fault.of(error))

    def _next(self) -> Any:
        """The next job: the one with the longest to go. Those of actors, which are equal, keep their order."""
        place = 0 if self.executor.keep else self.paces.longest(self.waiting)
        job = self.waiting[place]
        del self.waiting[place]
        return job

    def _most(self) -> int:
        """How many jobs may be at work: no more than there is room for, looked at from time to time."""
        if self.executor.autoscaling:  # what waits is what makes nodes come
            return self.executor.workers or len(self.waiting) + len(self.running)
        if time.monotonic() - self.looked > _PATIENCE:
            self.room, self.looked = self.need.room(self.ray), time.monotonic()
        return self.room if self.executor.workers is None else min(self.room, self.executor.workers)

    def _start(self, job: Any) -> None:
        """Send a job out; raises `GliderError` where its files cannot be read, or its place is taken."""
        leaving = job.leaving()
        begun = Parcel() if job.folder is None else Parcel.of(job.folder)
        sent = self.ray.put(begun) if begun.files else None
        shipments = tuple(self._shipment(source) for source in job.reads)
        threads = job.resources.threads or self.executor.threads
        order = Order(leaving, shipments, sent, threads, self.executor.save_steps, self.executor.setup)
        if self.executor.keep:
            running = Running.by_actor(job, order, self.seats.idle.pop())
        else:
            messages = self._task().remote(order)
            running = Running(job, messages, messages.completed())
        self.running.append(running)
        self.paces.send(job)

    def _task(self) -> Any:
        """The task, with what it takes of a node."""
        if self._remote is None:
            once = {"max_retries": 0, "num_returns": "streaming", "name": "glider job"}
            self._remote = self.ray.remote(work).options(**self.take, **once)
        return self._remote

    def _seat(self, up: Any) -> Iterator[Attempt]:
        """An actor is up, or was lost before it was; that is a loss to the waiting job that had the fewest."""
        try:
            self.seats.arrive(up)
        except self.ray.exceptions.RayError as error:
            self.looked = 0.0
            if self.waiting:
                place = min(range(len(self.waiting)), key=lambda i: self.losses.get(id(self.waiting[i]), 0))
                job = self.waiting[place]
                del self.waiting[place]
                yield from self._again(job, UNKNOWN, f"{type(error).__name__}: {_line(error)}", place)

    def _shipment(self, source: Any) -> Shipment:
        """A file or directory as it is sent, once for all the jobs that read it."""
        if source not in self.shipped:
            parcel = source.pack()
            sent = self.ray.put(parcel) if self.executor.files == "store" else None
            self.shipped[source] = Shipment(source, source.path.absolute(), parcel.digest, sent)
        return self.shipped[source]

    def _hear(self, running: Running) -> Iterator[Attempt]:
        """One message of a job that is at work, or the word that none will come."""
        try:
            message = running.hear(self.ray)
        except StopIteration:
            yield from self._finish(running)
            return
        except self.ray.exceptions.RayTaskError as error:  # our code there did not even begin
            running.ended = Ended(fault=Fault(type(error.cause).__name__, _line(error.cause), node=running.node))
            yield from self._finish(running)
            return
        except self.ray.exceptions.RayError as error:
            yield from self._lose(running, error)
            return
        if isinstance(message, Checkpoint):
            yield from self._save(running, message)
            return
        self._heed(running, message)
        if running.ended is not None:
            yield from self._finish(running)

    def _save(self, running: Running, checkpoint: Checkpoint) -> Iterator[Attempt]:
        """Put a checkpoint in place; where that cannot be done, as on a full disk, this job fails and no other."""
        try:
            running.job.take(checkpoint.content)
        except (GliderError, OSError) as error:
            self.running.remove(running)
            running.stop(self.ray)
            yield Attempt(running.job, fault=Fault.of(error))
            return
        self.losses.pop(id(running.job), None)
        self._give_way(running)

    def _heed(self, running: Running, message: Any) -> None:
        match message:
            case Begun():
                running.node = message.node
            case Progress():
                self.paces.tell(running.job, message.share)
                self.report(message.name, message.text, message.share)
            case Warned():
                warnings.warn(f"{running.job.name}: {message.text}", GliderWarning, stacklevel=2)
            case Ended():
                running.ended = message

    def _give_way(self, running: Running) -> None:
        """Let a job that has just saved its state go on later, where another must have its place for the run to end
        early.

        Places are those of jobs that have begun: what others take of the cluster is none, and what was sent without
        room would have the place first.
        """
        job, at_work = running.job, [one.job for one in self.running if one.node != UNKNOWN]
        if self.executor.keep or not self.paces.gives_way(job, at_work, self.waiting):
            return
        share = self.paces.share(job)
        self.running.remove(running)
        running.stop(self.ray)
        self.paces.rest(job)
        self.waiting.append(job)
        self.report(job.name, "waits for a longer one", share)

    def _finish(self, running: Running) -> Iterator[Attempt]:
        """The attempt that ended; its actor is free for another job."""
        self.running.remove(running)
        ended = running.ended
        if ended is None:
            running.stop(self.ray)
            yield from self._again(running.job, running.node, "its messages ended without a result")
            return
        if running.actor is not None:
            self.seats.idle.append(running.actor)
        if ended.fault is not None:
            yield Attempt(running.job, fault=ended.fault)
            return
        try:
            if ended.content is not None:
                running.job.take(ended.content)
            result = running.job.arrived(ended.result)
        except (GliderError, OSError) as error:
            yield Attempt(running.job, fault=Fault.of(error))
        else:
            yield Attempt(running.job, result=result)

    def _lose(self, running: Running, error: Exception) -> Iterator[Attempt]:
        """The node or the process is gone, or what it sent is: the job goes on elsewhere."""
        self.running.remove(running)
        running.stop(self.ray)  # Ray may call it gone for a while only
        self.seats.clear()
        self.looked = 0.0  # the nodes are others now
        yield from self._again(running.job, running.node, f"{type(error).__name__}: {_line(error)}")

    def _again(self, job: Any, node: str, reason: str, place: int = 0) -> Iterator[Attempt]:
        count = self.losses[id(job)] = self.losses.get(id(job), 0) + 1
        if count > self.executor.losses:
            text = f"lost {count} times without coming further; the last time: {reason}"
            yield Attempt(job, fault=Fault("ProcessEnded", text, node=node))
            return
        self.paces.rest(job)
        self.report(job.name, f"lost with {node}; tried again", 0.0)
        self.waiting.insert(place, job)


def _line(error: Any) -> str:
    return " ".join(str(error).split())[:600]
