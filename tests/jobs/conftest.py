"""A Ray cluster of several nodes on this machine, for tests marked `cluster`."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest

DEATHS = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}  # a killed node is dead in two seconds
LONGEST = 300  # seconds after which a test is taken for one that hangs


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs nothing, and nodes that tests add; this process is the driver."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": DEATHS, **memory})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def add_node(cluster: Any) -> Iterator[Callable[[], Any]]:
    """`add_node()` adds a node of one CPU; all are gone at the end. A test that waits for ever is stopped."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"still waiting after {LONGEST} seconds")

    nodes, before = [], signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)

    def add() -> Any:
        node = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        nodes.append(node)
        return node

    yield add
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    for node in nodes:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


@pytest.fixture(scope="session")
def kill() -> Callable[[Any], None]:
    """`kill(node)`: SIGKILL to every process of a node and to its workers."""

    def kill(node: Any) -> None:
        processes = [process for kind in node.all_processes.values() for process in kind]
        pids = [info.process.pid for info in processes]
        pids += [child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.all_processes.clear()

    return kill
