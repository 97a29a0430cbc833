"""A server at saturation for a short while; `benchmarks/soak.py --minutes 30` is the long one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_a_short_soak_finds_no_fault(tmp_path: Path, llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 4, profile=True).path
    command = [sys.executable, SCRIPT, "--base", llama_directory, "--pool", pool, "--minutes", "0.4"]
    work = ["--router", "glider(global=examples, p=-1.0)", "--workers", "16", "--places", "6", "--reload-every", "0.5"]
    ran = subprocess.run([*command, *work, "--json", tmp_path / "out"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-4000:]
    result = json.loads((tmp_path / "out").read_text("utf8"))
    assert result["faults"] == []
    assert min(result["counts"][kind] for kind in ("greedy", "cancelled", "refused", "reloads")) > 0
    assert result["near_ties"] <= 0.02 * result["counts"]["greedy"]
