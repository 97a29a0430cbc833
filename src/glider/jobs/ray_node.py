"""The code that runs on a node of a Ray cluster: one job, its reports, its checkpoints, and its files."""

import os
import queue
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import glider
from glider.errors import ConfigError, GliderWarning
from glider.files.disk import work_directory
from glider.files.replacing import work_beside
from glider.jobs.base import Fault
from glider.jobs.local import threads
from glider.jobs.parcel import Parcel, Source, state_of
from glider.jobs.saving import saving_every

REPORT_SECONDS = 0.5  # between two reports of a job
_LONGEST_LOG = 4000  # bytes of what a failed job printed


@dataclass(frozen=True)
class Shipment:
    """A file or directory that a job reads: the parcel that holds it, or the path that every node can read it by."""

    source: Source
    path: Path
    digest: str
    parcel: Any = None  # a reference into Ray's object store


@dataclass(frozen=True)
class Order:
    """A job as it is sent: with its inputs, its unfinished work, and how to run it."""

    job: Any
    shipments: tuple[Shipment, ...]
    begun: Any  # a reference to a parcel, or None
    threads: int
    save_steps: int
    setup: Any = None  # called without arguments in the process before the job, where a run needs more than glider
    version: str = glider.__version__


@dataclass(frozen=True)
class Begun:
    """The job runs, on this node."""

    node: str


@dataclass(frozen=True)
class Progress:
    """A report of the job."""

    name: str
    text: str
    share: float


@dataclass(frozen=True)
class Warned:
    """A warning for the user."""

    text: str


@dataclass(frozen=True)
class Checkpoint:
    """The work done so far, from which another node can resume."""

    content: Parcel


@dataclass(frozen=True)
class Ended:
    """How the job ended, and the files in its folder."""

    result: Any = None
    content: Parcel | None = None
    fault: Fault | None = None


def work(order: Order) -> Iterator[Any]:
    """Run a job and yield its messages: `Begun`, then the reports, then `Ended`.

    The job runs in its own thread, so that this one can pass on its messages meanwhile.
    """
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    yield Begun(node_name())
    threading.Thread(target=_run, args=(order, messages), daemon=True).start()
    while True:
        message = messages.get()
        yield message
        if isinstance(message, Ended):
            return


def node_name() -> str:
    """The name of this machine and process for a user."""
    import ray

    address = ray.util.get_node_ip_address()
    return f"node {socket.gethostname()} ({address}), process {os.getpid()}"


def _run(order: Order, messages: "queue.SimpleQueue[Any]") -> None:
    log = Log()
    try:
        ended = _result(order, messages)
    except BaseException as error:  # the driver waits for a word, whatever happened
        traceback.print_exc()
        ended = Ended(fault=replace(Fault.of(error), node=node_name(), log=log.tail()))
    messages.put(ended)


def _result(order: Order, messages: "queue.SimpleQueue[Any]") -> Ended:
    if order.version != glider.__version__:
        expected, got = f"glider {order.version} on every node, as where the run began", glider.__version__
        raise ConfigError(expected, got, "Install the same version there.")
    if order.setup is not None:
        order.setup()
    with work_beside(desk() / "job") as scratch, threads(order.threads), saving_every(order.save_steps):
        job = order.job.moved(_places(order.shipments), scratch)
        if order.begun is not None:
            import ray

            job.take(ray.get(order.begun))
        courier = Courier(job, messages)
        with _forwarded(messages):
            result = job.run(courier)
        return Ended(result, None if job.folder is None else Parcel.of(job.folder))


class Courier:
    """The report of a job: passes on its progress, not too often, and every state that it saves on disk."""

    def __init__(self, job: Any, messages: "queue.SimpleQueue[Any]"):
        self.folder, self.messages = job.folder, messages
        self.state, self.reported = self._state(), 0.0

    def __call__(self, name: str, text: str, share: float) -> None:
        now = time.monotonic()
        if now - self.reported >= REPORT_SECONDS or share >= 1:
            self.messages.put(Progress(name, text, share))
            self.reported = now
        if self.folder is not None and (state := self._state()) != self.state:
            self.state = state
            self.messages.put(Checkpoint(Parcel.of(self.folder)))

    def _state(self) -> tuple:
        return () if self.folder is None else state_of(self.folder)


class Log:
    """The output of this process from now on, if it prints into a file, as Ray's workers do."""

    def __init__(self) -> None:
        self.files = [(place, _size(place)) for place in ("/proc/self/fd/1", "/proc/self/fd/2")]

    def tail(self) -> str:
        """The end of it."""
        sys.stdout.flush()
        sys.stderr.flush()
        return "\n".join(filter(None, (self._read(*file) for file in self.files)))

    def _read(self, place: str, begin: int | None) -> str:
        if begin is None or (size := _size(place)) is None:
            return ""
        with Path(place).resolve().open("rb") as file:
            file.seek(max(begin, size - _LONGEST_LOG))
            lines = file.read().decode("utf8", errors="replace").splitlines()
        return "\n".join(line for line in lines if not line.startswith("::") and ":actor_name:" not in line)


def _size(place: str) -> int | None:
    """Bytes of the regular file that a descriptor leads to, or None."""
    path = Path(place)
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


@contextmanager
def _forwarded(messages: "queue.SimpleQueue[Any]") -> Iterator[None]:
    """Send our own warnings to the user, who does not see this machine's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", GliderWarning)
        plain = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, GliderWarning):
                messages.put(Warned(str(message)))
            else:
                plain(message, category, *where, **more)

        warnings.showwarning = show
        yield


_desk = ExitStack()  # closed by nobody: the directory goes with the process, or with the next one that works here
_unpacked: dict[str, Path] = {}


def desk() -> Path:
    """This process's directory for what is sent to it; those of processes that were killed are removed."""
    if "" not in _unpacked:
        shared = work_directory(Path(tempfile.gettempdir()) / f"glider-ray-{os.getuid()}")
        if shared.stat().st_uid != os.getuid():
            raise ConfigError(f"a directory {shared} of this user", "another user's", "Set TMPDIR on the nodes.")
        shared.chmod(0o700)
        import atexit

        work = _desk.enter_context(work_beside(shared / "process"))
        _unpacked[""] = Path(os.path.realpath(work))  # other processes look there too
        atexit.register(_desk.close)
    return _unpacked[""]


def _places(shipments: tuple[Shipment, ...]) -> Mapping[Path, Path]:
    return {shipment.source.path: place_of(shipment) for shipment in shipments}


def place_of(shipment: Shipment) -> Path:
    """The path of a shipment on this machine; raises `ConfigError` if a shared path holds another file."""
    if shipment.parcel is None:
        if (got := shipment.source.at(shipment.path).pack().digest) != shipment.digest:
            expected = f"{shipment.path} as it is where the run began ({shipment.digest[:12]})"
            raise ConfigError(expected, got[:12], "Share the file system, or let the files be sent (--files store).")
        return shipment.path
    if shipment.digest not in _unpacked:
        import ray

        place = desk() / shipment.digest / shipment.path.name
        parcel: Parcel = ray.get(shipment.parcel)  # pyright: ignore[reportAssignmentType]
        _unpacked[shipment.digest] = parcel.unpack(place)
    return _unpacked[shipment.digest]
