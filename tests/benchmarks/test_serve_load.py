"""The load benchmark runs, and both ways write equally many tokens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_load.py"


@pytest.mark.slow
def test_the_benchmark_runs_on_a_tiny_model(tmp_path: Path, llama_directory: Path) -> None:
    command = [sys.executable, SCRIPT, "--base", llama_directory, "--experts", "3", "--signal", "ensemble"]
    work = [
        "--requests",
        "5",
        "--repeats",
        "1",
        "--in-flight",
        "3",
        "--new-tokens",
        "6",
        "--pairs",
        "2",
        "--first",
        "3",
    ]
    out = tmp_path / "out.json"
    ran = subprocess.run([*command, *work, "--json", out], check=True, capture_output=True, text=True)
    assert "routed by ensemble" in " ".join(ran.stdout.split())
    result = json.loads(out.read_text("utf8"))
    assert [(one["way"], one["tokens"]) for one in result["runs"]] == [
        ("base", 30), ("routed", 30), ("routed", 30), ("base", 30)
    ]  # fmt: skip
    assert all(one["seconds"] > 0 and len(one["first"]) == 5 for one in result["runs"])
    assert {way: len(times) for way, times in result["first"].items()} == {"base": 3, "routed": 3}
    assert result["routing_ms"] > 0
