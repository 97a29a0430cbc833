"""The benchmark of experts in reach runs, and counts them rightly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reach.py"


@pytest.mark.slow
def test_the_benchmark_runs_on_three_descriptions(tmp_path: Path) -> None:
    texts = tmp_path / "instructions.json"
    texts.write_text(json.dumps({name: {"flan_query": f"Sort {name}.", "expert": f"Order {name}."} for name in "abc"}))
    ran = subprocess.run([sys.executable, SCRIPT, texts, "--alpha", "0"], check=True, capture_output=True, text=True)
    rows = [line.split() for line in ran.stdout.splitlines()]
    (narrow, wide) = (row for row in rows if row[:1] == ["instruction"])
    assert narrow[5:] == ["576", "1.00", "1.00", "1.00"] and wide[5:] == ["1536", "1.00", "1.00", "1.00"]
    assert {"q_proj", "down_proj"} <= {row[0] for row in rows if row}
