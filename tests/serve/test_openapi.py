"""The server against its own `/openapi.json`, by Schemathesis: made-up requests, replies as they are described."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx

from .conftest import Serve, Served

HOOK = """
import schemathesis

@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body = {**body, "model": "tiny"}
        if "prompt" in body or "messages" in body:
            body |= {name: 3 for name in ("max_tokens", "max_completion_tokens") if isinstance(body.get(name), int)}
    return body
"""
UNTOLD = "positive_data_acceptance"  # what a schema cannot say is refused too: tokens that are none, a prompt too long


def test_replies_are_as_described(serve: Serve, tmp_path: Path) -> None:
    """No 500, no status, type or field that the schema does not have; whatever breaks the schema is refused."""
    served = serve("--allow-changes", "--default-tokens", "3")
    hook = tmp_path / "ask_tiny.py"
    hook.write_text(HOOK)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json", "--seed", "1"]
    command += ["--phases", "fuzzing", "--max-examples", "15", "--checks", "all", "--exclude-checks", UNTOLD]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "ask_tiny", "PYTHONPATH": _path(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"Tested: (\d+)", done.stdout)[0]) == len(_operations(served))
    assert "Traceback" not in served.log.read_text("utf8")


def test_every_route_says_what_it_replies(server: Served) -> None:
    for method, path, operation in _operations(server):
        replies = operation["responses"]
        assert {"200", "4XX", "5XX"} <= set(replies), (method, path)
        schema = next(iter(replies["200"]["content"].values()))["schema"]
        assert schema, (method, path)


def test_a_method_that_is_none(server: Served) -> None:
    """It was refused for its content type, as if another one would do."""
    answer = httpx.post(f"{server.url}/v1/models", content=b"x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


def _path(directory: Path) -> str:
    return os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))


def _operations(served: Served) -> list[tuple[str, str, dict]]:
    paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    return [(method, path, one) for path, methods in paths.items() for method, one in methods.items()]
