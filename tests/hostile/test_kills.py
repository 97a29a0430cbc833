"""A small run of the kill sweep: every command, killed at some events, leaves what was there or what was to be."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).with_name("kills.py")
QUICK = (  # these at every event
    *("pool add", "pool remove", "pool rename", "pool calibrate", "pool sign", "pool keygen", "expert describe"),
    *("expert gates", "expert pull", "pool pull", "pool push", "init", "pool check"),
)
LONG = ("expert profile", "expert import", "expert train", "pool build", "evaluate", "generate")
LONG += ("pool train-router vq", "pool train-router joint", "pool train-router task-moe", "pool train-router lorauter")
LONG += ("report paper", "report scores", "report routing")
FROM_OUTSIDE = ("pool pull of a hub", "expert import-official", "serve")


def sweep(out: Path, every: int, *commands: str) -> str:
    command = [sys.executable, str(KILLS), "--out", str(out), "--every", str(every), *commands]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked")
def test_a_kill_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    told = sweep(tmp_path, 1, *QUICK)
    assert int(re.findall(r"(\d+) kills, 0 faults", told)[0]) > 60


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked")
def test_a_kill_of_what_takes_long_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    told = sweep(tmp_path, 5, *LONG)
    assert int(re.findall(r"(\d+) kills, 0 faults", told)[0]) > 20


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked")
def test_a_kill_of_what_comes_from_outside_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    told = sweep(tmp_path, 7, *FROM_OUTSIDE)
    assert int(re.findall(r"(\d+) kills, 0 faults", told)[0]) > 10
