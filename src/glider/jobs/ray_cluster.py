"""Connects to a Ray cluster, reads its resources, and leaves it as it was."""

import os
import socket
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glider.errors import ConfigError, GliderWarning, MissingDependency


def require_ray() -> Any:
    """The package; raises `MissingDependency` without it."""
    try:
        import ray
    except ImportError:
        raise MissingDependency("ray", "run jobs on a cluster", "pip install 'glider-moe[ray]'") from None
    return ray


_PATIENCE = 10.0  # seconds for a cluster to answer
_SILENCE = 10.0  # seconds without room before a run says that it waits
_LOOK = 2.0  # seconds between two looks at the nodes


@contextmanager
def connected(address: str | None, packages: Sequence[Path] = ()) -> Iterator[Any]:
    """Be a driver of a cluster: of the one that this process is connected to already, else of the one at `address`.

    Without an address it is what `ray.init()` finds ($RAY_ADDRESS, a cluster on this machine), or a new one on this
    machine, which ends with the block. Directories of `packages` are sent along for the nodes to import. Raises
    `ConfigError` where there is no cluster at the address.
    """
    ray = require_ray()
    if address is not None and address.startswith("ray://"):
        remedy = "Run the command on the cluster: ray job submit --address ... -- glider ..."
        raise ConfigError("an address such as auto or HOST:6379", f"{address}, a Ray Client's", remedy)
    if ray.is_initialized():
        yield ray
        return
    _require_answer(address or os.environ.get("RAY_ADDRESS", ""))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        sent = {"py_modules": [str(path) for path in packages]} if packages else None
        ray.init(address=address, log_to_driver=False, logging_level="warning", runtime_env=sent)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as fault:
        got = " ".join(str(fault).split())[:300]
        remedy = "Start one (ray start --head), or leave --address out for one on this machine."
        if "RAY_AUTH_MODE" not in os.environ:  # Ray shows its token to clusters that it finds itself alone
            remedy += " If the one there asks for a token: export RAY_AUTH_MODE=token."
        raise ConfigError(f"a Ray cluster at {address or 'the default address'}", got, remedy) from fault
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise `ConfigError` where nobody listens at HOST:PORT: Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return  # auto, local, or what Ray may say of it
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as fault:
        remedy = "Start one (ray start --head), or leave --address out for one on this machine."
        raise ConfigError(f"a Ray cluster at {address}", str(fault), remedy) from fault


@dataclass(frozen=True)
class Need:
    """The resources of a node that one job takes."""

    cpus: float
    gpus: float

    def room(self, ray: Any) -> int:
        """How many such jobs the living nodes could hold if they were empty."""
        return sum(self._at(node["Resources"]) for node in ray.nodes() if node["Alive"])

    def require(self, ray: Any) -> None:
        """Raise `ConfigError` where no node could ever run such a job."""
        if self.room(ray):
            return
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = {name: max((node.get(name, 0.0) for node in alive), default=0.0) for name in ("CPU", "GPU")}
        expected = f"a node with {self.cpus:g} CPU and {self.gpus:g} GPU for a job"
        got = f"{len(alive)} node{'s' if len(alive) != 1 else ''}, the largest with {most['CPU']:g} CPU"
        got += f" and {most['GPU']:g} GPU" if most["GPU"] else " and none with a GPU" if self.gpus else ""
        remedy = "Ask for less (--cpus-per-job, --gpus-per-job), or say --autoscaling where nodes come on demand."
        raise ConfigError(expected, got, remedy)

    def lack(self, ray: Any) -> str:
        """One line: what a job wants, what the cluster has."""
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        free = ray.available_resources()
        names = ("CPU", "GPU") if self.gpus else ("CPU",)
        needs = " and ".join(
            f"{amount:g} {name}" for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount
        )
        has = (
            f"{sum(node.get(name, 0.0) for node in alive):g} {name} ({free.get(name, 0.0):g} free)" for name in names
        )
        nodes = f"{len(alive)} node{'s' if len(alive) != 1 else ''}"
        return (
            f"waiting for a node with room for a job: wanted {needs}; the cluster has {nodes} with {' and '.join(has)}"
        )

    def _at(self, resources: dict[str, float]) -> int:
        counts = []
        for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)):
            if amount:
                counts.append(int(resources.get(name, 0.0) / amount + 1e-9))
        return min(counts)


def await_room(ray: Any, need: Need) -> None:
    """Wait until the cluster begins a task of this need; a warning says so where that takes more than some seconds."""
    scout = (
        ray.remote(lambda: None).options(num_cpus=need.cpus, num_gpus=need.gpus, name="glider: is there room").remote()
    )
    try:
        if not ray.wait([scout], timeout=_SILENCE)[0]:
            _tell(ray, need)
            while not ray.wait([scout], timeout=_LOOK)[0]:
                pass
    except BaseException:
        ray.cancel(scout)  # only then: Ray aborts the process where a task ends while it is cancelled
        raise


@contextmanager
def telling_of_no_node(ray: Any, need: Need) -> Iterator[None]:
    """Warn once while the block runs, should there be no node for some seconds that could ever hold a job."""
    over = threading.Event()

    def look() -> None:
        since = 0.0
        while not over.wait(_LOOK):
            since = 0.0 if need.room(ray) else since + _LOOK
            if since >= _SILENCE:
                _tell(ray, need)
                return

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _tell(ray: Any, need: Need) -> None:
    with suppress(ray.exceptions.RayError):
        warnings.warn(need.lack(ray), GliderWarning, stacklevel=3)
