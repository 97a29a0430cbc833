"""Directories held by their descriptors: what takes their place is not worked in, and errors name what was given."""

from pathlib import Path

import pytest

from glider.errors import TrainingError
from glider.files.held import empty, held

PLACE = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="directories are held by Linux's own names")


@PLACE
def test_a_held_directory_is_the_one_that_was_opened(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    with held(tmp_path / "one") as one:
        (tmp_path / "one").rename(tmp_path / "moved")
        (tmp_path / "one").symlink_to(tmp_path / "other")
        (one / "file").write_text("x")
    assert (tmp_path / "moved" / "file").exists() and not (tmp_path / "other" / "file").exists()


@pytest.mark.parametrize("kind", ["link", "file", "nothing"])
def test_only_directories_are_held(tmp_path: Path, kind: str) -> None:
    (tmp_path / "real").mkdir()
    place = tmp_path / "place"
    if kind == "link":
        place.symlink_to(tmp_path / "real")
    elif kind == "file":
        place.write_text("x")
    with pytest.raises(OSError), held(place):  # ELOOP, ENOTDIR or ENOENT
        pass


def test_errors_name_the_directory_as_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as fault, held(tmp_path) as place:
        (place / "none").read_text()
    assert fault.value.filename == str(tmp_path / "none")
    with pytest.raises(TrainingError) as told, held(tmp_path) as place:
        raise TrainingError(f"a state in {place / 'run.json'}", "none", f"Remove {place}.")
    assert str(told.value) == f"wanted a state in {tmp_path / 'run.json'}; got none. Remove {tmp_path}."


def test_a_directory_is_emptied_and_what_links_lead_to_stays(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "gold").write_text("x")
    full = tmp_path / "full"
    (full / "folder").mkdir(parents=True)
    (full / "folder" / "file").write_text("x")
    (full / "link").symlink_to(tmp_path / "outside")
    empty(full)
    assert not list(full.iterdir()) and (tmp_path / "outside" / "gold").exists()
