"""The benchmark of what routing costs runs, and tells what it found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process of its own

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "overhead.py"


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--share"], id="share"),
        pytest.param(["--kernel", "torch"], id="torch"),
        pytest.param(["--compile"], id="compile"),
        pytest.param(["--peft", "lora"], id="lora"),
        pytest.param(["--peft", "arrow"], id="arrow"),
    ],
)
def test_the_benchmark_runs_on_a_tiny_model(tmp_path: Path, llama_directory: Path, more: list[str]) -> None:
    command = [sys.executable, SCRIPT, "--base", llama_directory, "--experts", "3", "--pairs", "2", "--steps", "2"]
    cases = ["--cases", "prefill-1x512", "decode-8"]
    out = tmp_path / "out.json"
    ran = subprocess.run([*command, *cases, *more, "--json", out], check=True, capture_output=True, text=True)
    assert "decode-8" in ran.stdout
    told = json.loads(out.read_text("utf8"))
    assert [row["case"] for row in told["rows"]] == cases[1:]
    assert all(row["ratio"] > 0 and row["peak_resident_megabytes"] > 0 for row in told["rows"])
