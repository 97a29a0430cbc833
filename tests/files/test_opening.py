"""The one way to open: regular files alone, without waiting, no more bytes than allowed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from glider.files.opening import UnfitFile, open_descriptor, read_bytes, read_exactly, read_text, sha256

KINDS = ("pipe", "socket", "directory", "endless device", "link to an endless device")


@pytest.fixture(params=KINDS)
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Something in place of a file."""
    path = tmp_path / "x"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        here = socket.socket(socket.AF_UNIX)
        here.bind(str(path))
        here.close()
    elif request.param == "directory":
        path.mkdir()
    elif request.param == "endless device":
        return Path("/dev/zero")
    else:
        path.symlink_to("/dev/zero")
    return path


def test_what_is_no_file_is_refused_at_once(odd: Path) -> None:
    for read in (lambda: read_bytes(odd, 10), lambda: sha256(odd), lambda: open_descriptor(odd)):
        with pytest.raises(UnfitFile, match="no regular file"):
            read()


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", 5) == b"12345" and read_text(tmp_path / "x", 9) == "12345"
    with pytest.raises(UnfitFile, match="5 bytes, where 4 are the most"):
        read_bytes(tmp_path / "x", 4)
    os.truncate(tmp_path / "x", 1 << 40)
    with pytest.raises(UnfitFile, match="are the most"):
        read_bytes(tmp_path / "x", 1 << 20)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs a file that does not tell its size")
def test_a_file_that_does_not_tell_its_size_is_bounded_too() -> None:
    assert Path("/proc/self/maps").stat().st_size == 0
    with pytest.raises(UnfitFile, match="more than 100 bytes"):
        read_bytes("/proc/self/maps", 100)


def test_links_are_no_files_where_none_may_be(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    assert read_bytes(tmp_path / "y", 1) == b"1"
    with pytest.raises(UnfitFile):
        read_bytes(tmp_path / "y", 1, follow=False)


def test_a_file_that_ends_early_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    descriptor = open_descriptor(tmp_path / "x")
    try:
        assert read_exactly(descriptor, 1, 3) == b"234"
        with pytest.raises(UnfitFile, match="ends at byte 5"):
            read_exactly(descriptor, 3, 3)
    finally:
        os.close(descriptor)


PLACES = {
    "pool.json": "Pool.open(pool)",
    "pool.json.sig": "Pool.open(pool, require_key=pool.parent / 'key.pub')",
    "../key.pub": "Pool.open(pool, require_key=pool.parent / 'key.pub')",
    "../key": "sign_pool(pool, pool.parent / 'key')",
    "e0/card.json": "Pool.open(pool)",
    "e0/adapter_config.json": "Expert.open(pool / 'e0')",
    "e0/adapter_model.safetensors": "Expert.open(pool / 'e0')",
    "e0/glider.safetensors": "Expert.open(pool / 'e0')",
    "../rows.jsonl": "read_rows(pool.parent / 'rows.jsonl')",
    "../rows.jsonl.gz": "read_rows(pool.parent / 'rows.jsonl.gz')",
    "../t_best.pt": "open_checkpoint(pool.parent / 't_best.pt')",
}
OPEN = """
import resource, sys
from pathlib import Path
from glider.contribute.published_format import open_checkpoint
from glider.data.rows import read_rows
from glider.errors import GliderError
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.sharing.signature import sign_pool
pool = Path(sys.argv[1])
room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (512 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
for line in sys.stdin.read().splitlines():
    try:
        eval(line)
    except GliderError as fault:
        print(type(fault).__name__, fault)
    else:
        sys.exit(f"accepted: {line}")
"""


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_no_reader_hangs_at_a_pipe_or_fills_the_memory_from_a_device(
    make_pool, llama_directory: Path, tmp_path: Path, kind: str
) -> None:
    from glider.sharing.signature import generate_keys, sign_pool

    generate_keys(tmp_path / "key", tmp_path / "key.pub")
    lines = []
    for made, (place, line) in enumerate(PLACES.items()):
        if place.startswith(("e0", "pool.json")) or place == "../key.pub":
            pool = make_pool(llama_directory, experts=1, name=f"{made}/pool").path
            for key in ("key", "key.pub"):
                (pool.parent / key).write_bytes((tmp_path / key).read_bytes())
            sign_pool(pool, tmp_path / "key")
        else:
            pool = tmp_path / f"{made}" / "pool"
            pool.mkdir(parents=True)
            (pool / "pool.json").write_text("{}")
        odd = pool / place
        odd.unlink(missing_ok=True)
        os.mkfifo(odd) if kind == "pipe" else odd.symlink_to("/dev/zero")
        lines.append(f"[{line} for pool in [Path({str(pool)!r})]]")
    run = [sys.executable, "-c", OPEN, str(tmp_path)]
    done = subprocess.run(run, input="\n".join(lines), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == len(PLACES)


def test_a_file_of_holes_has_no_digest(tmp_path: Path) -> None:
    """Of eight terabytes that take no place, one took an hour."""
    (tmp_path / "x").write_bytes(b"begins")
    os.truncate(tmp_path / "x", 1 << 43)
    with pytest.raises(UnfitFile, match="the rest holes"):
        sha256(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"begins")
    os.truncate(tmp_path / "x", 1 << 20)
    assert len(sha256(tmp_path / "x")) == 64
