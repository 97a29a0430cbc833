"""A small run of the fuzz loop: what mutated files do is what their readers say, and a stopped run goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


def fuzz(out: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FUZZ), "--out", str(out), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_no_mutated_file_does_anything_but_be_refused_or_taken(tmp_path: Path) -> None:
    ran = fuzz(tmp_path, "--cases", 2000, "--seed", 15)
    faults = tmp_path / "faults.jsonl"
    assert ran.returncode == 0, faults.read_text() if faults.exists() else ran.stderr
    ended = json.loads((tmp_path / "done-0-of-1.json").read_text())["ended"]
    for reader in ("card", "expert", "layout", "pool of format 1", "pool of format 2", "run", "rows"):
        assert ended[f"{reader}: refused"] > 10 and ended[f"{reader}: taken"] > 0  # both ways were gone


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole, parts = fuzz(tmp_path / "whole", "--cases", 60), [fuzz(tmp_path / "parts", "--cases", n) for n in (25, 60)]
    assert parts[1].stdout == whole.stdout and "60 cases, 0 faults" in whole.stdout


@pytest.mark.slow
def test_a_fault_is_noted_and_repeated_by_its_number(tmp_path: Path) -> None:
    """With a reader that is broken on purpose."""
    script = (
        f"import sys; sys.path.insert(0, {str(FUZZ.parent)!r})\n"
        "import fuzz, readers\n"
        "def broken(path, chance): raise KeyError('a bug')\n"
        "known = readers.readers\n"
        "card = lambda seeds: readers.Reader(('card.json',), broken, known(seeds)['card'].directory)\n"
        "fuzz.readers = lambda seeds: {'card': card(seeds)}\n"
        "raise SystemExit(fuzz.main())\n"
    )
    command = [sys.executable, "-c", script, "--out", str(tmp_path)]
    ran = subprocess.run([*command, "--cases", "5"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and "5 cases, 5 faults" in ran.stdout, ran.stderr
    fault = json.loads((tmp_path / "faults.jsonl").read_text().splitlines()[0])
    again = subprocess.run([*command, "--case", str(fault["case"])], capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "KeyError: 'a bug'" in again.stdout
