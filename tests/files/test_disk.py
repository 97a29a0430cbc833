"""Files appear whole or not at all: a write that raises or runs into a full disk leaves what was there."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glider.errors import DataError
from glider.files.disk import canonical_json, held_within, new_directory, sha256, work_directory, write_file, write_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def fill_half_and_fail(path: Path) -> None:
    path.write_text("half")
    raise RuntimeError("power cut")


def test_a_failing_write_leaves_the_old_file(tmp_path: Path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(RuntimeError, match="power cut"):
        write_file(tmp_path / "a.json", fill_half_and_fail)
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert names(tmp_path) == ["a.json"]


def test_a_failing_first_write_leaves_nothing(tmp_path: Path):
    with pytest.raises(RuntimeError, match="power cut"):
        write_file(tmp_path / "a.json", fill_half_and_fail)
    assert names(tmp_path) == []


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    assert names(tmp_path) == ["a.json"]


def test_a_name_that_utf8_cannot_hold_is_told(tmp_path: Path):
    """A file may be named by any bytes; `glider init` on one such was a traceback."""
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(DataError, match=r"half a character.*Rename"):
        write_json(tmp_path / "a.json", {"data": os.fsdecode(b"rows-\xff.jsonl")})
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    assert names(tmp_path) == ["a.json"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write(partial: Path) -> None:
        partial.write_text("ne")
        assert path.read_text() == "old"
        partial.write_text("new")

    write_file(path, write)
    assert path.read_text() == "new"


def test_written_files_can_be_read_by_everybody(tmp_path: Path):
    write_json(tmp_path / "a.json", 1)
    with new_directory(tmp_path / "d") as partial:
        (partial / "x").write_text("x")
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o755


def test_missing_parents_are_made(tmp_path: Path):
    write_json(tmp_path / "one" / "two" / "a.json", 1)
    with new_directory(tmp_path / "three" / "four") as partial:
        (partial / "x").write_text("x")
    assert (tmp_path / "one/two/a.json").read_text() == "1\n"
    assert names(tmp_path / "three/four") == ["x"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_cannot_be_written_is_named_as_it_was_given(tmp_path: Path, kind: str):
    """In a directory that is read-only the error named the temporary place."""
    (tmp_path / "shut").mkdir(mode=0o500)
    shut = () if os.access(tmp_path / "shut", os.W_OK) else (tmp_path / "shut" / "a.json",)  # root may write there
    for path in (tmp_path / ("a" * 250), *shut):  # with more in its name it is too long
        with pytest.raises(OSError) as fault:
            if kind == "file":
                write_json(path, {})
            else:
                with new_directory(path):
                    pass
        assert fault.value.filename == str(path)


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe", "link to a device"])
def test_nothing_takes_the_place_of_a_pipe_or_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    """`--out /dev/null` of the superuser made a file of the system's `/dev/null`, and `/dev/stdout` likewise."""
    place, other = tmp_path / "out", tmp_path / "other"
    if kind == "socket":
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(place.name)
    elif kind == "link to a device":
        place.symlink_to("/dev/zero")
    else:
        os.mkfifo(place if kind == "pipe" else other)
        if kind != "pipe":
            place.symlink_to(other)
    before = place.lstat()
    with pytest.raises(FileExistsError, match="device is there") as fault:
        write_json(place, {})
    with pytest.raises(FileExistsError), new_directory(place):
        pass
    assert fault.value.filename == str(place)
    assert os.path.samestat(place.lstat(), before)
    assert set(names(tmp_path)) <= {"out", "other"}


def test_a_directory_takes_no_files_place(tmp_path: Path):
    (tmp_path / "d").write_text("old")
    with pytest.raises(NotADirectoryError), new_directory(tmp_path / "d"):
        pass
    assert (tmp_path / "d").read_text() == "old"


def test_a_directory_appears_only_when_it_is_whole(tmp_path: Path):
    with new_directory(tmp_path / "d") as partial:
        (partial / "x").write_text("x")
        assert not (tmp_path / "d").exists()
    assert names(tmp_path) == ["d"]
    assert (tmp_path / "d/x").read_text() == "x"


def test_a_failing_directory_leaves_nothing(tmp_path: Path):
    with pytest.raises(RuntimeError), new_directory(tmp_path / "d") as partial:
        fill_half_and_fail(partial / "x")
    assert names(tmp_path) == []


def test_a_failing_directory_leaves_the_old_one(tmp_path: Path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/old").write_text("old")
    with pytest.raises(RuntimeError), new_directory(tmp_path / "d") as partial:
        fill_half_and_fail(partial / "x")
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["old"]


def test_a_directory_replaces_the_old_one_whole(tmp_path: Path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/old").write_text("old")
    with new_directory(tmp_path / "d") as partial:
        (partial / "new").write_text("new")
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["new"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from glider.files.disk import new_directory, write_json

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
here = Path(sys.argv[1])
try:
    if sys.argv[2] == "file":
        write_json(here / "pool.json", "x" * 100_000)
    else:
        with new_directory(here / "expert") as partial:
            (partial / "small").write_text("x")
            (partial / "big").write_bytes(b"x" * 100_000)
except OSError as fault:
    print(type(fault).__name__)
    sys.exit(7)
"""


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, kind: str):
    (tmp_path / "pool.json").write_text("old")
    (tmp_path / "expert").mkdir()
    (tmp_path / "expert" / "card.json").write_text("old")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path, kind], capture_output=True, timeout=60)
    assert done.returncode == 7, done.stderr.decode()
    assert names(tmp_path) == ["expert", "pool.json"]
    assert (tmp_path / "pool.json").read_text() == "old"
    assert names(tmp_path / "expert") == ["card.json"]


FULL_DISK_EXPERT = """
import resource, sys
from pathlib import Path
import torch
from peft import LoraConfig
from glider.experts.base_identity import BaseIdentity
from glider.experts.card import ExpertCard
from glider.experts.expert import write_expert
from glider.experts.prompt_format import PromptFormat

base = BaseIdentity(model_id="b", config_hash="0", weight_hashes={"w": "0"})
card = ExpertCard(name="e0", task="t", base=base, prompt=PromptFormat(kind="plain"))
pair = {f"base_model.model.q.lora_{f}.weight": torch.ones(512, 512) for f in "AB"}
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    write_expert(Path(sys.argv[1]) / "e0", card, LoraConfig(r=512, target_modules=["q"]), pair, {}, None)
except Exception as fault:
    print(type(fault).__name__)
    sys.exit(7)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_no_part_of_an_expert(tmp_path: Path):
    run = [sys.executable, "-c", FULL_DISK_EXPERT, tmp_path]
    done = subprocess.run(run, capture_output=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 7, done.stderr.decode()
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_sha256_is_the_hash_of_the_whole_file(tmp_path: Path, size: int):
    content = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    (tmp_path / "x").write_bytes(content[:size])
    assert sha256(tmp_path / "x") == hashlib.sha256(content[:size]).hexdigest()


@given(JSON)
def test_canonical_json_says_the_same_thing(value: object):
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_canonical_json_does_not_depend_on_order(value: dict[str, object]):
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


def test_a_directory_to_work_in_is_made_by_several_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of a build begin together: each saw none, and all but one failed to make it."""
    seen = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: seen(path) and Path(path).name != "work")
    (tmp_path / "work").mkdir()  # by another one, since it was looked for
    assert work_directory(tmp_path / "work") == tmp_path / "work"
    monkeypatch.undo()
    with ThreadPoolExecutor(8) as threads:
        for number in range(50):
            place = tmp_path / str(number) / "work"
            assert set(threads.map(work_directory, [place] * 8)) == {place}


@pytest.mark.parametrize("kind", ["file", "directory", "held"])
def test_no_empty_directory_is_left_where_nothing_could_be_written(tmp_path: Path, kind: str) -> None:
    """`glider report paper --out NEW` on a full disk left an empty directory, `glider pool pull` its parents."""
    (tmp_path / "there").mkdir()
    (tmp_path / "shared").mkdir()
    for place in (tmp_path / "there" / "new" / "a", tmp_path / "there" / "a"):
        with pytest.raises(RuntimeError):
            if kind == "file":
                write_file(place, fill_half_and_fail)
            elif kind == "directory":
                with new_directory(place) as partial:
                    fill_half_and_fail(partial / "x")
            else:
                with held_within(place, "b"):
                    raise RuntimeError
    assert names(tmp_path) == ["shared", "there"] and names(tmp_path / "there") == []
    with pytest.raises(RuntimeError), held_within(tmp_path / "new", "b") as folder:
        fill_half_and_fail(folder / "x")
    assert names(tmp_path / "new" / "b") == ["x"]  # of what has something in it nothing goes
