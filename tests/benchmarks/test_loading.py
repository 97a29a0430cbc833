"""The benchmark of loading and of limited expert memory runs, and tells what it found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process of its own

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loading.py"


def test_the_benchmark_runs_on_a_tiny_model(llama_directory: Path, tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--cases", "3", "3:60kB", "--pairs", "1", "--steps", "2"]
    command += ["--base", llama_directory, "--json", tmp_path / "out.json"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    whole, limited = json.loads((tmp_path / "out.json").read_text("utf8"))["rows"]
    assert (whole["case"], limited["case"]) == ("3", "3:60kB")
    assert whole["load_s"] > 0 and whole["prefill_ratio"] > 0 and whole["decode_ratio"] > 0
    assert limited["first_prefill_s"] > 0
