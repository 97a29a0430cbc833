"""Nothing that a stranger's file says costs memory or time without bound."""

import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from glider.errors import ExpertError, GliderError, PoolError
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.pool import Pool

from .forms import TENSOR_FILES, Q, entry, refused, safetensors

IN_LITTLE_ROOM = """
import resource
import sys
from pathlib import Path
from glider.errors import GliderError
from glider.experts.expert import Expert
from glider.experts.pool import Pool

pages = int(Path("/proc/self/statm").read_text().split()[0])
room = pages * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    Expert.open(sys.argv[1]) if sys.argv[2] == "expert" else Pool.open(sys.argv[1])
except GliderError as fault:
    print(fault)
else:
    sys.exit("accepted")
"""


def refused_in_little_room(path: Path, kind: str) -> str:
    """The error that a process of little memory raises in little time."""
    command = [sys.executable, "-c", IN_LITTLE_ROOM, str(path), kind]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("file", EXPERT_FILES)
def test_a_pipe_in_place_of_a_file_does_not_hang(pool: Path, file: str):
    (pool / "a" / file).unlink()
    os.mkfifo(pool / "a" / file)
    assert file in refused_in_little_room(pool / "a", "expert")


@pytest.mark.slow
@pytest.mark.parametrize("file", [*EXPERT_FILES, "pool.json"])
def test_a_giant_file_is_refused_in_little_memory(pool: Path, file: str):
    """Two gigabytes that take no room on the disk; a tensor file says that nearly all of it is header."""
    path = pool / file if file == "pool.json" else pool / "a" / file
    if file in TENSOR_FILES:
        path.write_bytes(struct.pack("<Q", (2 << 30) - 8))
    os.truncate(path, 2 << 30)
    assert file in refused_in_little_room(*((pool, "pool") if file == "pool.json" else (pool / "a", "expert")))


def test_absurd_shapes_allocate_nothing(pool: Path):
    path = pool / "a" / "adapter_model.safetensors"
    key = f"base_model.model.{Q}.lora_{{}}.weight"
    shapes = {
        key.format("A"): entry([4, 1 << 40], 0, 1 << 44),
        key.format("B"): entry([32, 4], 1 << 44, (1 << 44) + 512),
    }
    path.write_bytes(safetensors(shapes))
    tracemalloc.start()
    try:
        refused(lambda: Expert.open(pool / "a"), str(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_header_of_many_tensors_takes_memory_in_its_proportion(pool: Path):
    path = pool / "a" / "glider.safetensors"
    path.write_bytes(safetensors({f"t{i}": entry([1], 4 * i, 4 * i + 4) for i in range(50_000)}, b"0000" * 50_000))
    tracemalloc.start()
    try:
        refused(lambda: Expert.open(pool / "a"), str(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * path.stat().st_size


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", ["([a-z_.0-9]+)+x", "(a|[a-z]|[a-z_.0-9])*x", "(.*)*(.*)*x"])
def test_a_pattern_that_explodes_does_not_hang(pool: Path, edit_json: Callable[..., None], setting: str, pattern: str):
    """Patterns are regular expressions, and a stranger's may take longer than the universe has left."""
    edit_json(pool / "a" / "adapter_config.json", **{setting: {pattern: 4}})
    script = (
        "import sys\nfrom pathlib import Path\nfrom glider.errors import GliderError\n"
        "from glider.experts.peft_format import read_layout\n"
        "try:\n    read_layout(Path(sys.argv[1])).scaling(sys.argv[2])\nexcept GliderError:\n    pass\n"
    )
    subprocess.run([sys.executable, "-c", script, str(pool / "a"), Q], timeout=60, check=True)


def test_the_error_of_a_giant_setting_is_short(pool: Path, edit_json: Callable[..., None]):
    edit_json(pool / "a" / "adapter_config.json", modules_to_save=["x" * 100] * 10_000)
    with pytest.raises(ExpertError) as raised:
        Expert.open(pool / "a")
    assert len(str(raised.value)) < 2000


def test_a_fault_in_one_expert_leaves_no_partial_pool(pool: Path):
    (pool / "b" / "card.json").write_bytes(b"\xff" * (pool / "b" / "card.json").stat().st_size)
    with pytest.raises(GliderError) as raised:
        Pool.open(pool)
    assert str(pool / "b" / "card.json") in str(raised.value)
    assert not isinstance(raised.value, PoolError)
