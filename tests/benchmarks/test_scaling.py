"""The benchmarks of how routing scales and of a loop over experts run, and count rightly what they compare with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process of its own

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of the process from /proc")
def test_one_sweep_is_measured_beside_its_limit_and_drawn(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "scaling.py", "--sweeps", "rank", "--layers", "1"]
    out, picture = tmp_path / "out.json", tmp_path / "out.svg"
    more = ["--pairs", "2", "--steps", "2", "--json", out, "--plot", picture]
    ran = subprocess.run([*command, *more], check=True, capture_output=True, text=True)
    rows = json.loads(out.read_text("utf8"))["rows"]
    assert [(row["rank"], row["tokens"]) for row in rows] == [(r, t) for r in (4, 8, 16, 32, 64) for t in (1, 512)]
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in rows)
    (one, many) = (row for row in rows if row["rank"] == 16)
    base, gates, pair = 576 * 1536, 36 * 576, 16 * (576 + 1536)
    assert one["limit"] == pytest.approx(1 + (4 * gates + 2 * 2 * pair) / (4 * base))
    assert many["limit"] == pytest.approx(1 + (gates + 2 * pair) / base)
    assert one["held_megabytes"] == pytest.approx((4 * gates + 36 * 2 * pair) / 1e6)
    assert one["peak_resident_megabytes"] > one["held_megabytes"]
    assert "quartiles" in ran.stdout and picture.read_text("utf8").startswith("<?xml")


def test_a_loop_over_experts_gives_what_the_routed_t5_gives(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "t5_loop.py", "--experts", "3", "--layers", "2", "--width", "64"]
    out = tmp_path / "out.json"
    more = ["--input", "8", "--rounds", "2", "--json", out]
    subprocess.run([*command, *more], check=True, capture_output=True, text=True)
    told = json.loads(out.read_text("utf8"))
    assert told["sites"] == 2 * 18  # 7 in a layer of the encoder, 11 in one of the decoder; 24 of each make 432
    assert told["difference"]["3"] < 1e-4
    cases = [(row["case"], row["model"]) for row in told["rows"]]
    assert cases == [(case, model) for case in ("score", "step") for model in ("routed", "loop")]
    assert all(row["ratio"] > 0 for row in told["rows"])
