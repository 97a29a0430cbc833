"""The benchmark of spectra runs, and tells what it found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process of its own

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "spectra.py"


def test_the_benchmark_runs_on_a_small_pool(tmp_path: Path):
    command = [sys.executable, SCRIPT, "--experts", "3", "--rank", "2", "--threads", "1", "--json", tmp_path / "out"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "3 experts of rank 2" in ran.stdout
    told = json.loads((tmp_path / "out").read_text("utf8"))
    assert told["settings"] == {"experts": 3, "rank": 2, "threads": 1}
    assert all(value >= 0 for value in told["results"].values())
