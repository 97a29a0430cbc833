"""The requests of docs/serving.md, sent to a server with the tiny pool."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from glider.serve.keys import KeyFile
from glider.serve.schemas import Steering
from glider.serve.settings import ServeSettings

from ..serve.conftest import Served, model, options, pool_directory, server  # noqa: F401

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf8")


def here(text: str, served: Served) -> str:
    return text.replace("http://127.0.0.1:8000", served.url).replace('"demo"', '"tiny"')


@pytest.fixture
def served(server: Served) -> Served:  # noqa: F811
    return server


@pytest.mark.slow
def test_curl_is_answered(served: Served) -> None:
    commands = re.findall(r"^curl .*?(?:'|models)$", PAGE, re.S | re.M)
    assert len(commands) == 6
    for command in commands:
        ran = subprocess.run(shlex.split(here(command, served)), capture_output=True, text=True, check=True)
        error = json.loads(ran.stdout).get("error", {"code": None})
        assert error["code"] == ("changes_not_allowed" if "lora" in command or "reload" in command else None), error


@pytest.mark.slow
def test_python_is_answered(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names: dict = {}
    exec(here(first, served), names)
    assert "{'e" in capsys.readouterr().out
    exec(here(second, served), names)
    assert "words=" in capsys.readouterr().out
    names["client"].close()


def test_settings_are_what_there_is() -> None:
    request, keys = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    Steering.model_validate(json.loads(request.splitlines()[0])["glider"])
    KeyFile.model_validate(json.loads(keys))
    flags = {f"--{name.replace('_', '-')}" for name in ServeSettings.model_fields} | {"--no-otel"}
    named = set(re.findall(r"`(--[a-z-]+)", PAGE)) - {
        "--router",
        "--beside-transformers",
    }  # of the pool, of a benchmark
    assert named <= flags, named - flags
