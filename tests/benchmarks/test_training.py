"""The benchmark of the training loop runs, and both of its loops learn the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process of its own

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


def test_both_loops_have_one_loss_curve(tmp_path: Path, llama_directory: Path):
    rows = [{"input": f"say {'very ' * (i % 5)}{i}", "output": "xyz"[: 1 + i % 3]} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    command = [sys.executable, SCRIPT, tmp_path / "rows.jsonl", "--base", llama_directory, "--rank", "2"]
    command += ["--steps", "4", "--batch-size", "4", "--pairs", "1", "--json", tmp_path / "out.json"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "ratio: median" in ran.stdout
    told = json.loads((tmp_path / "out.json").read_text("utf8"))
    assert len(set(told["losses"]["ours"])) == 4
    assert told["losses"]["ours"] == pytest.approx(told["losses"]["plain"], rel=1e-3)
    assert [set(pair) for pair in told["pairs"]] == [{"plain", "ours", "ratio"}]
