"""The benchmark of continuous batching runs, and the ways it compares write equally many tokens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process of its own

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "continuous_batching.py"


def test_the_benchmark_runs_on_a_tiny_model(tmp_path: Path, llama_directory: Path) -> None:
    command = [sys.executable, SCRIPT, "--base", llama_directory, "--experts", "3", "--pairs", "2"]
    work = ["--requests", "5", "--at-once", "2", "--prompts", "4", "40", "--new-tokens", "6", "--ends", "0.1"]
    out = tmp_path / "out.json"
    ran = subprocess.run([*command, *work, "--json", out], check=True, capture_output=True, text=True)
    assert "routed, generate_batch" in ran.stdout
    told = json.loads(out.read_text("utf8"))
    rows = {row["way"]: row for row in told["rows"]}
    for who in ("base", "routed"):
        assert 0 < rows[f"{who}, generate_batch"]["tokens"] == rows[f"{who}, generate"]["tokens"] <= 5 * 6
    assert all(row["tokens_a_second"] > 0 and row["ratios"][way] == 1 for way, row in rows.items())
