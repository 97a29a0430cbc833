"""`vllm serve` with a pool, in processes of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TOKENS = 16


@dataclass
class Server:
    """A running `vllm serve`."""

    url: str

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status, and the reply as JSON or text."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                status, content = reply.status, reply.read().decode()
        except urllib.error.HTTPError as fault:
            with fault:
                status, content = fault.code, fault.read().decode()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content

    def chat(self, text: str, model: str = "demo", **more: Any) -> tuple[int, Any]:
        body = {"model": model, "temperature": 0, "max_tokens": TOKENS, "return_token_ids": True, **more}
        return self.ask("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]})

    def tokens(self, text: str, model: str = "demo", **more: Any) -> tuple[int, ...]:
        status, reply = self.chat(text, model, **more)
        assert status == 200, reply
        assert reply["model"] == model
        return tuple(reply["choices"][0]["token_ids"])


@contextmanager
def served(mode: str, log: Path, *options: str) -> Iterator[Server]:
    """The demo pool behind vLLM's own server, which writes to `log`; `options` are vLLM's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "vllm-args demo --base smollm2-135m --mode"
    also = ["--also", "phatgoose"] if mode == "route" else []
    made = [sys.executable, "-m", "glider", *command.split(), mode, *also]
    line = subprocess.run(made, capture_output=True, text=True, check=True).stdout
    settings = "--dtype float32 --max-model-len 512 --kv-cache-memory-bytes 268435456"
    environment = {**os.environ, "VLLM_PLUGINS": "glider", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    words = [str(Path(sys.executable).parent / "vllm"), "serve", *line.split(), *settings.split(), *options]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*words, "--port", str(port)], stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    started = Server(f"http://127.0.0.1:{port}")
    try:
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail(log.read_text()[-4000:])
            try:
                if started.ask("/health")[0] == 200:
                    break
            except OSError:
                time.sleep(1)
        yield started
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
