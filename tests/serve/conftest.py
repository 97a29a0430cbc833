"""A real server in a process of its own, on the tiny Llama, and the in-process model beside it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.model import RoutedModel
from glider.inference.spec import load

from ..conftest import write_random_expert


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A server of a test's own takes seconds to start."""
    for item in items:
        if "serve" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


MARKUP = "<img src=x onerror=\"document.title='broken into'\"> & <b>bold</b>"


@dataclass
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[str]
    log: Path
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, key: str = "none") -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)
        self.clients.append(client)
        return client

    def stop(self, sig: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(600)


@contextmanager
def serving(log: Path, *options: str, **environment: str) -> Iterator[Served]:
    """`glider serve` with these options at a free port, until the block ends."""
    command = [sys.executable, "-W", "ignore", "-m", "glider", "serve", "--port", "0", *options]
    with log.open("w") as out:
        process = subprocess.Popen(command, stderr=out, text=True, env={**os.environ, **environment})
    try:
        served = Served(_address(process, log), process, log)
        yield served
        for client in served.clients:
            client.close()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    while True:
        text = log.read_text("utf8")
        if found := re.search(r" at (http://\S+) \(API", text):
            return found[1]
        if process.poll() is not None:
            raise AssertionError(text)
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue


@pytest.fixture(scope="session")
def pool_directory(
    llama_directory: Path, embedder_identity, edit_json, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A pool of four random experts with profiles."""
    base = load_base(str(llama_directory))
    pool = Pool.create(tmp_path_factory.mktemp("served") / "tiny", base.identity)
    for number in range(4):
        write_random_expert(pool.path / f"e{number}", base, seed=number, embedder=embedder_identity, profile=True)
        edit_json(pool.path / f"e{number}" / "card.json", description=MARKUP)
        pool = pool.add(f"e{number}")
    return pool.path


@pytest.fixture(scope="session")
def options(llama_directory: Path, pool_directory: Path) -> list[str]:
    """Those that serve the tiny pool, by words, the global term deciding."""
    router = "glider(global=examples, p=-1.0)"
    return ["--base", str(llama_directory), "--pool", str(pool_directory), "--router", router]


@pytest.fixture(scope="session")
def server(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that tests share; they leave it as it is."""
    with serving(tmp_path_factory.mktemp("log") / "log", *options) as served:
        yield served


@pytest.fixture(scope="session")
def client(server: Served) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="session")
def model(llama_directory: Path, pool_directory: Path) -> RoutedModel:
    """The same model in this process."""
    return load(str(llama_directory), pool_directory, router="glider(global=examples, p=-1.0)")


Serve = Callable[..., Served]


@pytest.fixture
def serve(options: list[str], tmp_path: Path) -> Iterator[Serve]:
    """`serve(*options)`: a server of this test's own."""
    started = []

    def start(*more: str, **environment: str) -> Served:
        at = options.index("--pool")
        given = options[:at] + options[at + 2 :] if "--pool" in more else options
        one = serving(tmp_path / f"log{len(started)}", *given, *more, **environment)
        started.append(one)
        return one.__enter__()

    yield start
    for one in started:
        one.__exit__(None, None, None)
