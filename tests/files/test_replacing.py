"""Directories change places in one step, or in two that the next opening finishes; what dead processes left goes."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from glider.files import replacing
from glider.files.disk import new_directory, write_file, write_json
from glider.files.replacing import exchange, recover, sweep

KILLED = """
import os, signal, sys
from pathlib import Path
from glider.files import replacing
from glider.files.disk import new_directory

moment = int(sys.argv[2])
if sys.argv[3] == "two steps":
    replacing.exchange = lambda one, other: False
renames = 0
def hook(event, arguments):
    global renames
    if event == "os.rename":
        if renames == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        renames += 1
sys.addaudithook(hook)
with new_directory(Path(sys.argv[1])) as partial:
    (partial / "new").write_text("new")
"""


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def killed(place: Path, moment: int, way: str) -> int:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(place), str(moment), way]
    return subprocess.run(command, check=False).returncode


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "expert").mkdir()
    (tmp_path / "expert" / "old").write_text("old")
    return tmp_path / "expert"


@pytest.mark.parametrize(
    ("way", "moment", "content"),
    [("one step", 0, ["old"]), ("two steps", 0, ["old"]), ("two steps", 1, ["new"]), ("two steps", 2, ["new"])],
)
def test_a_kill_at_a_rename_loses_nothing(place: Path, way: str, moment: int, content: list[str]) -> None:
    """Between the two steps the name is free: the expert was gone for good."""
    code = killed(place, moment, way)
    assert (code == 0) == (moment == 2)
    assert place.exists() != (way == "two steps" and moment == 1)
    recover(place)
    assert names(place) == content
    write_json(place.parent / "other.json", {})  # the next writer sweeps
    assert names(place.parent) == ["expert", "other.json"] and names(place) == content


def test_the_sweep_finishes_what_nobody_opened(place: Path) -> None:
    killed(place, 1, "two steps")
    sweep(place.parent)
    assert names(place.parent) == ["expert"] and names(place) == ["new"]


def test_the_sweep_leaves_what_living_processes_write(place: Path) -> None:
    with new_directory(place) as partial:
        sweep(place.parent)
        recover(place)
        (partial / "new").write_text("new")
    assert names(place) == ["new"]


def test_the_sweep_follows_no_link(place: Path, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "file").touch()
    (tmp_path / ".expert.01234567.partial").symlink_to(treasure)
    (tmp_path / ".x.01234567.partial").write_text("a file")
    sweep(tmp_path)
    write_json(tmp_path / "other.json", {})
    assert names(treasure) == ["file"]


def test_what_version_0_1_left_between_its_steps_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".expert.old.abcd1234" / "replaced").mkdir(parents=True)
    (tmp_path / ".expert.old.abcd1234" / "replaced" / "card.json").touch()
    recover(tmp_path / "expert")
    assert names(tmp_path / "expert") == ["card.json"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")
def test_two_names_change_places_in_one_step(place: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    if not exchange(tmp_path / "other", place):
        pytest.skip("this file system cannot")
    assert names(place) == [] and names(tmp_path / "other") == ["old"]
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "nothing", place)


def test_without_the_system_call_there_are_two_steps(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "_renameat2", lambda: None)
    with new_directory(place) as partial:
        (partial / "new").write_text("new")
    assert names(place) == ["new"] and names(place.parent) == ["expert"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="directories are held by Linux's own names")
def test_what_is_being_written_is_led_nowhere_by_a_link_put_in_its_way(tmp_path: Path) -> None:
    """Another user of the directory put a link in place of the work directory: files of the same name were emptied."""
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "card.json").write_text("gold")

    def write(partial: Path) -> None:
        (work,) = (tmp_path / name for name in names(tmp_path) if name.endswith(".partial"))
        work.rename(tmp_path / "aside")
        work.symlink_to(treasure)
        partial.write_text("new")

    write_file(tmp_path / "card.json", write)
    assert (treasure / "card.json").read_text() == "gold" and names(treasure) == ["card.json"]
    assert (tmp_path / "card.json").read_text() == "new"
