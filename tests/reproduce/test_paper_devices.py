"""Several processes over one `--work`: two rehearsals at once, and one command over several devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fullrun.devices import DeviceError, devices_of, require_device, run_on, shares_of
from fullrun.plan import read_plan
from glider.errors import ConfigError
from glider.experts.pool import Pool

SCRIPT = Path(__file__).parents[2] / "reproduce" / "paper" / "run.py"


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, SCRIPT, *arguments]
    where = {**os.environ, "GLIDER_CACHE_MB": "0"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=where)


def ended(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.slow
def test_two_rehearsals_at_once_leave_what_each_of_them_makes(tmp_path: Path) -> None:
    """One imported the pool that the other removed; of two summaries one was lost, and of a run file's methods."""
    common = ("--tiny", "--json", "--work", tmp_path, "--pool", "t0", "--set", "bbl")
    methods = ("alpha-1", "alpha-10", "alpha-1000")
    told = [
        cell for one in [start("table2/alpha", "--method", name, *common) for name in methods] for cell in ended(one)
    ]
    assert [cell["method"] for cell in told] == list(methods) and not any(cell["missing"] for cell in told)
    work = tmp_path / "tiny"
    summary = json.loads((work / "results" / "table2" / "alpha" / "t0" / "summary.json").read_text("utf8"))
    assert summary == {f"{cell['method']}/bbl": cell for cell in told}
    run = json.loads((work / "runs" / "table2" / "alpha" / "t0-bbl.yaml").read_text("utf8"))
    assert {router["name"] for router in run["routers"]} == set(methods)
    assert len(Pool.open(work / "pools" / "t0")) == 8
    assert not list(work.rglob("*.partial"))


@pytest.mark.slow
def test_one_command_runs_over_several_devices(tmp_path: Path) -> None:
    chosen = ("table2/alpha", "table1/phatgoose", "--pool", "t0", "--set", "bbl")
    process = start(*chosen, "--tiny", "--json", "--work", tmp_path, "--devices", "cpu,cpu")
    told = ended(process)
    plan = read_plan(["table2/alpha", "table1/phatgoose"]).chosen(pool="t0", set_name="bbl")
    assert [(cell["config"], cell["method"]) for cell in told] == [(cell.config, cell.label) for cell in plan.cells]
    again = start(*chosen, "--tiny", "--json", "--work", tmp_path)
    assert ended(again) == told  # one process finds all of it done


@pytest.mark.slow
def test_a_process_that_fails_is_named_and_stops_no_other(tmp_path: Path) -> None:
    chosen = ("table2/alpha", "--method", "alpha-1", "--pool", "t0", "--set", "bbl", "--tiny", "--work", tmp_path)
    process = start(*chosen, "--devices", "cpu", "--downloads", tmp_path)  # which a rehearsal refuses
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "error: " in err and "alpha-1 t0 on cpu" in err.splitlines()[-1]
    process = start(*chosen, "--devices", "cuda:99")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "wanted a device of this machine; got cuda:99" in err
    assert not (tmp_path / "tiny" / "rows").exists()  # and not when all is downloaded


@pytest.mark.parametrize("printed", ["a warning", "[]"])
def test_a_process_that_prints_no_results_is_no_success(printed: str) -> None:
    """Such a share was left out of the results, and the command ended as if nothing were missing."""
    plan = read_plan(["table2/alpha"]).chosen(method="alpha-1", pool="t0", set_name="bbl")
    with pytest.raises(DeviceError, match=r"results of every process; got .*alpha-1 t0 on cpu"):
        run_on(["cpu"], plan, [sys.executable, "-c", f"print({printed!r})"], lambda line: None)


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_told(name: str) -> None:
    require_device("cpu")
    with pytest.raises(ConfigError, match=rf"wanted a device .*got {name}"):
        require_device(name)
    if name != "gpu":
        require_device(name, here=False)  # of a cluster's nodes


def test_devices_are_read_as_ranges_and_names() -> None:
    assert devices_of("0-3") == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert devices_of("0,2, 5-6") == ["cuda:0", "cuda:2", "cuda:5", "cuda:6"]
    assert devices_of("cpu,mps") == ["cpu", "mps"]
    with pytest.raises(ConfigError, match="0-7"):
        devices_of(" ,")
    with pytest.raises(ConfigError, match="0-7"):
        devices_of("7-0")
    shares = shares_of(read_plan(["table1/glider", "table1/glider-by-hand"]), 3)
    assert shares == list(dict.fromkeys(shares)) and len(shares) == 6
    assert ("table1/glider", "--method", "glider", "--pool", "flan") in shares
    assert shares_of(read_plan(["train/t0-t5xl"]), 3) == [("train/t0-t5xl",)] * 3
