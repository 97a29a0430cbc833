"""No link within a directory of results leads what is written elsewhere."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from glider.errors import ConfigError, ExpertError
from glider.evaluation.cells import Cell
from glider.evaluation.runs import Run
from glider.files import replacing

from .run_files import statuses, told

PLACE = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="directories are held by Linux's own names")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that is none of the results."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "even.json").write_text("gold")
    return tmp_path / "outside"


def untouched(outside: Path) -> bool:
    return {file.name: file.read_text() for file in outside.iterdir()} == {"even.json": "gold"}


@pytest.mark.parametrize(
    ("place", "shared", "dangling"), [("base", False, False), ("base/near", True, False), ("base/far", False, True)]
)
def test_results_do_not_go_through_the_link_of_a_folder(
    make_run: Any, tmp_path: Path, outside: Path, place: str, shared: bool, dangling: bool
) -> None:
    link = tmp_path / "out" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / "new" if dangling else outside)
    with pytest.raises(ExpertError, match=f"out/{place}.*a link"):
        list(make_run(["base"]).go(shared=shared))
    assert untouched(outside)


def test_the_links_of_files_are_replaced(make_run: Any, tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "out" / "base" / "near"
    folder.mkdir(parents=True)
    (folder / "even.json").symlink_to(outside / "even.json")
    (folder / "e0.json").symlink_to(outside / "new.json")
    run = make_run(["base"], batch_tokens="auto")
    (folder / ".even.json.00000000.partial").symlink_to(outside)
    assert statuses(run) == ["done"] * 3 and untouched(outside)
    assert not (folder / "even.json").is_symlink() and "score" in told(run, "base", "near", "e0")


@pytest.mark.parametrize("hard", [False, True])
def test_a_lock_that_is_a_link_is_refused(make_run: Any, tmp_path: Path, outside: Path, hard: bool) -> None:
    (tmp_path / "out").mkdir()
    lock = tmp_path / "out" / ".writer.lock"
    lock.hardlink_to(outside / "even.json") if hard else lock.symlink_to(outside / "even.json")
    with pytest.raises(ConfigError, match=r"out/\.writer\.lock.*a link"):
        list(make_run(["base"]).go())
    assert untouched(outside)


def test_the_directory_of_results_may_be_a_link_itself(make_run: Any, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert statuses(make_run(["base"])) == ["done"] * 3
    assert (tmp_path / "disk" / "base" / "near" / "even.json").is_file()


@PLACE
def test_a_link_that_is_put_there_on_the_way_is_not_followed(
    make_run: Any, tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out" / "base" / "near"
    make_work = replacing._make_work

    def swapped(place: Path) -> Any:
        if not folder.is_symlink() and place.name == "even.json":  # between the folder's opening and the file's
            folder.rename(tmp_path / "moved")
            folder.symlink_to(outside)
        return make_work(place)

    monkeypatch.setattr(replacing, "_make_work", swapped)
    run: Run = make_run(["base"])
    cell: Cell = run.cells["base", "near", "even"]
    cell.store({"score": 1.0})
    assert untouched(outside) and (tmp_path / "moved" / "even.json").is_file()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_in_place_of_a_result_is_refused(make_run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "base" / "near"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "even.json")
    refusals: list[ConfigError] = []

    def run() -> None:
        try:
            statuses(make_run(["base"]))
        except ConfigError as fault:
            refusals.append(fault)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert [fault.got for fault in refusals] == [f"a directory, a pipe or a device at {folder / 'even.json'}"]
    assert (folder / "even.json").is_fifo()


def test_a_directory_in_place_of_a_result_is_told_before_anything_is_evaluated(make_run: Any, tmp_path: Path) -> None:
    """It was told once the cell had been evaluated, and no other was evaluated after it."""
    place = tmp_path / "out" / "phatgoose" / "far" / "say.json"
    place.mkdir(parents=True)
    run = make_run(["base", "phatgoose"])
    with pytest.raises(ConfigError, match=r"a directory.* at .*phatgoose/far/say\.json"):
        list(run.go())
    assert not any(cell.path.is_file() for cell in run.cells.values())


def test_names_of_other_scripts_are_files_of_their_own(make_run: Any, tmp_path: Path) -> None:
    """A task whose name has no Latin letter was written as `.json`, which reports pass over."""
    (tmp_path / "even.jsonl").rename(tmp_path / "偶数.jsonl")
    (tmp_path / "say.jsonl").rename(tmp_path / "言う.jsonl")
    sets = {"近い": {"tasks": ["偶数.jsonl"]}, "遠い": {"tasks": ["言う.jsonl"], "max_new_tokens": 3}}
    run = make_run(["base"], sets=sets)
    assert all(not part.startswith(".") for cell in run.cells.values() for part in cell.path.parts[-3:])
    assert len({cell.path.parent for cell in run.cells.values()}) == 2
