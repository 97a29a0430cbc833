"""A pool of a thousand experts holds little memory before its first use; the script tells how long it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process of its own

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "large_pool.py"


@pytest.mark.parametrize("layouts", [1, 100])
def test_a_thousand_experts_hold_little_memory(tmp_path: Path, layouts: int):
    command = [sys.executable, SCRIPT, "--experts", "1000", "--layouts", str(layouts), "--json", tmp_path / "best.json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    best = json.loads((tmp_path / "best.json").read_text("utf8"))["best"]
    assert best["open_growth_megabytes"] < 200.0


def test_the_benchmark_runs_on_a_small_pool(tmp_path: Path):
    command = [sys.executable, SCRIPT, "--experts", "3", "--layouts", "2", "--repeats", "1", "--json", tmp_path / "out"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "3 experts" in ran.stdout
    told = json.loads((tmp_path / "out").read_text("utf8"))
    assert told["settings"] == {"experts": 3, "rank": 4, "layouts": 2}
    assert len(told["runs"]) == 1 and set(told["best"]) == set(told["runs"][0])
