"""A server in a process of its own, for the benchmarks that ask one."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx


@dataclass
class Server:
    """One that runs."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def resident_megabytes(self) -> float:
        """Memory of its process that is resident now (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text("utf8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    @property
    def processor_seconds(self) -> float:
        """Time of the processor that all its threads have taken (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("utf8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(options: Sequence[object]) -> Iterator[Server]:
    """`glider serve` with these options at a free port, until the block ends; its log is shown where it fails."""
    command = [sys.executable, "-m", "glider", "serve", "--port", "0", *map(str, options)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        with path.open("wb") as log:
            process = subprocess.Popen(command, stderr=log)
        try:
            yield Server(_address(process, path), process)
            if process.poll() is not None:
                raise SystemExit(f"the server ended by itself:\n{path.read_text('utf8')[-4000:]}")
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.wait()


@contextmanager
def transformers_serving(model: str) -> Iterator[Server]:
    """`transformers serve` with continuous batching, for one model, at a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", model, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--continuous-batching", "--device", "cpu", "--dtype", "float32"]
    command += ["--cb-block-size", "32", "--cb-num-blocks", "513", "--cb-max-batch-tokens", "512"]  # as ours
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _is_healthy(url):
            if process.poll() is not None:
                raise SystemExit("`transformers serve` did not start: pip install 'transformers[serving]'")
            time.sleep(0.5)
        yield Server(url, process)
    finally:
        process.terminate()
        process.wait()


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=60.0).status_code == 200
    except httpx.TransportError:
        return False


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    while True:
        text = log.read_text("utf8", errors="replace")
        if match := re.search(r" at (http://\S+) \(API", text):
            return match[1]
        if process.poll() is not None:
            raise SystemExit(f"the server did not start:\n{text[-4000:]}")
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue


def metric_sum(text: str, name: str) -> float:
    """The sum of a metric over its labels, in Prometheus' text."""
    lines = [line for line in text.splitlines() if re.match(rf"{re.escape(name)}(\{{| )", line)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)
