"""The paper's rehearsal on a Ray cluster of this machine: a cell is what it is without one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "reproduce" / "paper" / "run.py"
CELL = ("table1/glider", "--pool", "t0", "--set", "bbl", "--tiny", "--json")


def cells(*arguments: str | Path) -> list[dict[str, Any]]:
    ran = subprocess.run([sys.executable, SCRIPT, *CELL, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.cluster
def test_a_cell_of_the_paper_is_the_same_on_ray(cluster: Any, add_node: Callable[[], Any], tmp_path: Path) -> None:
    add_node()
    there = cells("--work", tmp_path / "there", "--executor", "ray", "--address", cluster.address)
    here = cells("--work", tmp_path / "here")
    assert there and there == here
    assert not [cell for cell in there if cell["missing"]]
