"""The cache keeps bytes, whole, within its size, between processes; broken or forbidden, it is done without."""

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from glider.errors import GliderWarning
from glider.instructions.cache import Cache, cache, key_of
from glider.instructions.describers import Task, describe_tasks, load_describer
from glider.instructions.prompts import PROMPTS


def test_what_is_put_is_got(store: Cache):
    values = {key_of(i): bytes([i]) * i for i in range(1, 50)}
    store.put("description", values)
    assert store.get([*values, key_of("absent")]) == values
    store.close()
    again = Cache(store.path)
    assert again.get(values) == values
    assert again.info().entries == {"description": 49}
    again.close()


def test_a_key_is_all_it_depends_on():
    parts = ("embedding", {"embedder": "m", "prefix": ""}, "text")
    assert key_of(*parts) == key_of("embedding", {"prefix": "", "embedder": "m"}, "text")
    others = [("embedding", {"embedder": "m", "prefix": "q"}, "text"), (*parts, ""), ("embedding", {}, "text\ud800")]
    assert len({key_of(*parts), *(key_of(*other) for other in others)}) == 4


def test_only_its_owner_reads_it(store: Cache):
    store.put("description", {b"k": b"v"})
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert store.path.parent.stat().st_mode & 0o777 == 0o700


def test_the_least_recently_used_go_first(tmp_path: Path):
    small = Cache(tmp_path / "c.sqlite3", megabytes=0.5)
    small.put("embedding", {b"old": b"o" * 1000, b"needed": b"n" * 1000})
    small._open().execute("UPDATE entries SET used = used - 100000 WHERE key = ?", (b"needed",))  # pyright: ignore
    small._open().execute("UPDATE entries SET used = used - 50000 WHERE key = ?", (b"old",))  # pyright: ignore
    small._open().commit()  # pyright: ignore
    assert b"needed" in small.get([b"needed"])
    for i in range(300):
        small.put("embedding", {f"{i}".encode(): os.urandom(3000)})
    held = small.get([b"old", b"needed", b"299"])
    assert b"old" not in held and b"299" in held
    assert small.info().bytes <= 0.5e6
    small.close()
    assert sum(file.stat().st_size for file in tmp_path.glob("c.sqlite3*")) < 6e6


def test_a_value_of_megabytes_is_left_out(store: Cache):
    store.put("description", {b"big": b"x" * 2_000_000, b"small": b"x"})
    assert store.get([b"big", b"small"]) == {b"small": b"x"}


def test_clear_empties_the_file(store: Cache):
    assert store.clear() == 0 and not store.path.exists()
    store.put("embedding", {f"{i}".encode(): os.urandom(3000) for i in range(500)})
    before = store.info().bytes
    assert store.clear() == 500
    assert store.info().entries == {} and store.info().bytes < before / 10


class _Mine:
    def __reduce__(self):
        return (os.mkdir, (str(Path(os.environ["MINE_EXPLODED"])),))


def test_a_planted_pickle_is_bytes_and_nothing_more(store: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cache that unpickled its values would run whatever another program had written into it."""
    monkeypatch.setenv("MINE_EXPLODED", str(tmp_path / "exploded"))
    mine = pickle.dumps(_Mine())
    local = load_describer("local:/no/such")
    (first,) = describe_tasks(local, [Task(text="a question")], cache=store)
    prompt = PROMPTS["query@1"]
    asked = [key_of("description", local.makes, prompt.name, prompt.render((), "a question"))]
    store.put("description", dict.fromkeys(asked, mine))
    (told,) = describe_tasks(local, [Task(text="a question")], cache=store)
    assert told == first and told.fault  # the entry counts as none, and the describer is asked
    store.put("description", dict.fromkeys(asked, b"Ask a question\x1b[2J."))
    assert describe_tasks(local, [Task(text="a question")], cache=store)[0].fault
    store.put("description", dict.fromkeys(asked, b"Ask a question."))
    assert describe_tasks(local, [Task(text="a question")], cache=store)[0].text == "Ask a question."
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "content", [b"no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 5000, b"\x80\x04."]
)
def test_a_damaged_file_is_replaced(tmp_path: Path, content: bytes):
    path = tmp_path / "c.sqlite3"
    path.write_bytes(content)
    damaged = Cache(path)
    damaged.put("description", {b"k": b"v"})
    assert damaged.get([b"k"]) == {b"k": b"v"}
    damaged.close()


def test_damage_in_the_middle_is_outlived(store: Cache):
    store.put("embedding", {key_of(i): os.urandom(2000) for i in range(200)})
    store.close()
    with store.path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(200_000))
    again = Cache(store.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GliderWarning)  # where the damage shows while reading
        assert len(again.get([key_of(i) for i in range(200)])) < 200
    again.close()
    anew = Cache(store.path)
    anew.put("embedding", {b"k": b"v"})
    assert anew.get([b"k"]) == {b"k": b"v"}
    anew.close()


def test_a_table_of_another_program_is_left_alone(tmp_path: Path):
    connection = sqlite3.connect(tmp_path / "c.sqlite3")
    connection.execute("CREATE TABLE entries (mine TEXT)")
    connection.commit()
    connection.close()
    with pytest.warns(GliderWarning, match="is not used"):
        assert Cache(tmp_path / "c.sqlite3").get([b"k"]) == {}
    connection = sqlite3.connect(tmp_path / "c.sqlite3")
    assert connection.execute("SELECT sql FROM sqlite_master").fetchall() == [("CREATE TABLE entries (mine TEXT)",)]
    connection.close()


def test_an_unwritable_place_means_no_cache_and_one_warning(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    blocked = Cache(tmp_path / "file" / "c.sqlite3")
    with pytest.warns(GliderWarning, match="GLIDER_CACHE") as warned:
        blocked.put("description", {b"k": b"v"})
        assert blocked.get([b"k"]) == {}
        assert blocked.info().entries == {} and blocked.clear() == 0
    assert len(warned) == 1


def test_the_users_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("GLIDER_CACHE_MB", "3")
    assert cache().path == tmp_path / "here" / "instructions.sqlite3" and cache().limit == 3_000_000
    assert cache() is cache()
    monkeypatch.setenv("GLIDER_CACHE_MB", "0")
    cache().put("description", {b"k": b"v"})
    assert cache().get([b"k"]) == {} and not (tmp_path / "here").exists()


@pytest.mark.parametrize("what", ["directory", "pipe", "link to a device"])
def test_what_is_no_file_is_left_as_it_is(tmp_path: Path, what: str):
    """A link to /dev/null, by which somebody kept nothing, took the device from all other users."""
    place = tmp_path / "c.sqlite3"
    if what == "directory":
        place.mkdir()
    elif what == "pipe":
        os.mkfifo(place)
    else:
        os.mkfifo(tmp_path / "device")
        place.symlink_to("device")
    before = place.stat().st_mode
    cache_there = Cache(place)
    with pytest.warns(GliderWarning, match=r"a directory, a pipe or a device is there"):
        cache_there.put("description", {b"k": b"v"})
    assert cache_there.get([b"k"]) == {} and place.stat().st_mode == before


def test_the_file_that_a_link_leads_to_keeps_its_mode(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "notes.txt").chmod(0o644)
    place = tmp_path / "c.sqlite3"
    place.symlink_to("notes.txt")
    linked = Cache(place)
    linked.put("description", {b"k": b"v"})
    linked.close()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "notes.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("size", ["nan", "inf", "-inf", "1e999", "many"])
def test_a_limit_that_is_no_number_is_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str):
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path))
    monkeypatch.setenv("GLIDER_CACHE_MB", size)
    assert cache().limit == 256_000_000


def test_processes_share_it(store: Cache):
    script = (
        "import sys\nfrom glider.instructions.cache import Cache, key_of\nmine = Cache(sys.argv[1])\n"
        "for i in range(40):\n    key = key_of(sys.argv[2], i)\n    mine.put('embedding', {key: b'%d' % i})\n"
        "    assert mine.get([key])\n"
    )
    arguments = [sys.executable, "-W", "error", "-c", script, str(store.path)]
    workers = [subprocess.Popen([*arguments, str(worker)]) for worker in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    assert store.info().entries == {"embedding": 120}


def test_a_kill_leaves_it_whole(store: Cache):
    script = (
        "import sys, os\nfrom glider.instructions.cache import Cache, key_of\n"
        "c = Cache(sys.argv[1])\ni = 0\n"
        "while True:\n    c.put('embedding', {key_of(i): os.urandom(3000)}); print(i, flush=True); i += 1\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(store.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 50:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(store.get([key_of(i) for i in range(50)])) == 50
    connection = sqlite3.connect(store.path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
