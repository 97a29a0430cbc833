"""The commands of docs/reproducing.md and results.md, with what takes hours made small."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from run import main as run_paper

from .snippets import ROOT, glide, lines, page

MINI = ROOT / "reproduce" / "mini"


def test_the_papers_runs_are_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    rehearsal, *planned = [line for line in lines(page("reproducing.md")) if line.startswith("python")]
    assert rehearsal == "python reproduce/paper/run.py all --tiny"  # what tests/reproduce/test_paper_tiny.py runs
    assert len(planned) == 5
    for line in planned:
        words = shlex.split(line.replace(" --devices 0-7", ""))[2:]  # which starts what is planned here, eight times
        monkeypatch.setattr(sys, "argv", ["run.py", *words, *([] if "--dry-run" in words else ["--dry-run"])])
        assert run_paper() == 0
        planned_cells = "table1/glider" if words[0] == "all" else words[0]
        assert planned_cells in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_results_are_kept_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The first lines of that page are tests/reproduce/test_mini.py's."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "phatgoose"):
        shutil.copytree(MINI / "results" / name / "held-in", Path("RESULTS", name, "held-in"))
    keep, report = lines(page("results.md"))[3:]
    words = shlex.split(keep.replace("reproduce/mini/results", "kept").replace("reproduce", str(ROOT / "reproduce")))
    subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True)
    kept = sorted(file.relative_to("kept") for file in Path("kept").rglob("*.json"))
    assert len(kept) == 40
    assert all(Path("kept", file).read_bytes() == (MINI / "results" / file).read_bytes() for file in kept)
    assert "1 table and" in glide(report.replace("reproduce/mini/results", "kept"), monkeypatch, capsys)
