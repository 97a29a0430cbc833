"""A stranger's files are data: whatever is in them, the readers give one clear error, soon and in little memory."""

import json
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from glider.errors import ExpertError, GliderError, PoolError
from glider.experts.card import EmbedderIdentity, ExpertCard
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.membership import add_expert
from glider.experts.peft_format import read_layout
from glider.experts.pool import Pool
from glider.files.headers import LARGEST_HEADER, read_header
from glider.inference.base_model import BaseModel, load_base

Q = "model.layers.0.self_attn.q_proj"
TENSOR_FILES = ("adapter_model.safetensors", "glider.safetensors")
JSON_FILES = ("adapter_config.json", "card.json")
READERS: dict[str, Callable[[Path], Any]] = {
    "adapter_config.json": read_layout,
    "card.json": ExpertCard.read,
    "adapter_model.safetensors": lambda directory: read_header(directory / "adapter_model.safetensors"),
    "glider.safetensors": lambda directory: read_header(directory / "glider.safetensors"),
}
DIGITS = "1" * 5000  # Python refuses to convert so many, with an error of its own
fuzz = settings(max_examples=60, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just(10**400)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
mutations = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "extend", "splice"]), st.integers(0, 1 << 16), st.binary(max_size=12)),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def llama(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))


@pytest.fixture(scope="module")
def pristine(
    tmp_path_factory: pytest.TempPathFactory,
    llama: BaseModel,
    random_expert: Callable[..., Expert],
    embedder_identity: EmbedderIdentity,
) -> Path:
    """A pool of the experts a and b."""
    pool = Pool.create(tmp_path_factory.mktemp("pristine") / "pool", llama.identity)
    for seed, name in enumerate("ab"):
        random_expert(pool.path / name, llama, seed=seed, sites=[Q], embedder=embedder_identity)
        pool = pool.add(name)
    return pool.path


@pytest.fixture
def pool(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the pool, free to be damaged."""
    return shutil.copytree(pristine, tmp_path / "pool")


def mutated(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, where, more in changes:
        at = where % (len(content) + 1)
        if kind == "flip" and content:
            at %= len(content)
            content = content[:at] + bytes([content[at] ^ (1 << where % 8)]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "extend":
            content = content + more
        else:
            content = content[:at] + more + content[at + len(more) :]
    return content


def survives(read: Callable[[], Any]) -> bool:
    """Whether the reader accepted; any other error than a `GliderError` is a crash and comes out."""
    try:
        read()
    except GliderError as fault:
        assert len(str(fault)) < 10_000
        return False
    return True


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(read: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(GliderError) as raised:
        read()
    for part in parts:
        assert part in str(raised.value)


# --- random bytes, random JSON, mutations of real files


@pytest.mark.parametrize("file", EXPERT_FILES)
@given(content=st.binary(max_size=200))
@fuzz
def test_random_bytes_are_refused(pool: Path, file: str, content: bytes):
    (pool / "a" / file).write_bytes(content)
    assert not survives(lambda: READERS[file](pool / "a"))
    assert not survives(lambda: Expert.open(pool / "a"))


@pytest.mark.parametrize("file", JSON_FILES)
@given(content=values)
@example(content={"peft_type": "LORA", "r": 4, "lora_alpha": 10**400})
@example(content={"peft_type": "LORA", "r": 4, "lora_alpha": 1, "alpha_pattern": {"q": 10**400}})
@fuzz
def test_random_json_is_refused(pool: Path, file: str, content: Any):
    (pool / "a" / file).write_text(json.dumps(content), "utf8")
    assert not survives(lambda: Expert.open(pool / "a"))


@pytest.mark.parametrize("file", [*JSON_FILES, "pool.json"])
@given(data=st.data())
@fuzz
def test_any_value_in_any_field_is_read_or_refused(pristine: Path, pool: Path, file: str, data: st.DataObject):
    """Real files with one field, at any depth, replaced by something else."""
    place = Path(file) if file == "pool.json" else Path("a") / file
    content = json.loads((pristine / place).read_text("utf8"))
    inner = content
    while True:
        key = data.draw(st.sampled_from(sorted(inner)) if isinstance(inner, dict) else st.integers(0, len(inner) - 1))
        if not inner[key] or not isinstance(inner[key], dict | list) or data.draw(st.booleans()):
            break
        inner = inner[key]
    inner[key] = data.draw(values)
    (pool / place).write_text(json.dumps(content), "utf8")
    survives(lambda: Expert.open(pool / "a").verify())
    survives(lambda: Pool.open(pool))


@pytest.mark.parametrize("file", EXPERT_FILES)
@given(changes=mutations)
@fuzz
def test_mutated_files_are_read_or_refused(
    pristine: Path, pool: Path, file: str, changes: list[tuple[str, int, bytes]]
):
    (pool / "a" / file).write_bytes(mutated((pristine / "a" / file).read_bytes(), changes))
    survives(lambda: Expert.open(pool / "a").verify())
    if survives(lambda: Pool.open(pool)):
        assert Pool.open(pool).names == ["a", "b"]


@given(changes=mutations)
@fuzz
def test_a_mutated_index_opens_whole_or_not_at_all(pristine: Path, pool: Path, changes: list[tuple[str, int, bytes]]):
    (pool / "pool.json").write_bytes(mutated((pristine / "pool.json").read_bytes(), changes))
    if survives(lambda: Pool.open(pool)):
        assert len(Pool.open(pool)) == len(json.loads((pool / "pool.json").read_text("utf8"))["experts"])


@given(
    header=st.dictionaries(
        st.text(max_size=6),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "Q4", ""]) | scalars,
                "shape": st.lists(st.integers(-2, 1 << 60) | scalars, max_size=10) | scalars,
                "data_offsets": st.lists(st.integers(-2, 64) | scalars, max_size=3) | scalars,
            }
        ),
        max_size=3,
    ),
    data=st.binary(max_size=64),
)
@fuzz
def test_random_headers_are_read_or_refused(pool: Path, header: dict[str, Any], data: bytes):
    (pool / "a" / "glider.safetensors").write_bytes(safetensors(header, data))
    survives(lambda: Expert.open(pool / "a").verify())


# --- hand-made attacks


@pytest.mark.parametrize(
    "content",
    [
        safetensors(f'{{"t": {json.dumps(entry([1], 0, 4))}, "t": {json.dumps(entry([1], 0, 4))}}}'.encode(), b"1234"),
        safetensors({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, b"123456"),
        safetensors({"a": entry([1], 4, 8)}, b"12345678"),
        safetensors({"a": entry([1 << 40, 1 << 40], 0, 4)}, b"1234"),
        safetensors({"a": entry([1 << 47, 0], 0, 0)}),
        safetensors({"a": entry([-1, -1], 0, 4)}, b"1234"),
        safetensors({"a": entry([True], 0, 4)}, b"1234"),
        safetensors({"a": entry([1.0], 0, 4)}, b"1234"),
        safetensors({"a": entry([1] * 5000, 0, 4)}, b"1234"),
        safetensors({"a": entry([1], 4, 0)}, b"1234"),
        safetensors({"a": entry([1], 0, 4, "EXEC")}, b"1234"),
        safetensors({"a": {**entry([1], 0, 4), "more": 1}}, b"1234"),
        safetensors({"a": entry([1], 0, 4)}, b"12345"),
        safetensors(b'{"a": {"dtype": "F32", "shape": [' + DIGITS.encode() + b'], "data_offsets": [0, 4]}}', b"1234"),
        safetensors(b"[" * 200_000),
        safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        safetensors(b"\xff" * 64),
        safetensors(b"null"),
        struct.pack("<Q", 1 << 63) + b"{}",
        struct.pack("<Q", LARGEST_HEADER + 1) + b"{}",
        b"\x02",
        b"",
    ],
    ids=lambda content: str(content[8:40]),
)
@pytest.mark.parametrize("file", TENSOR_FILES)
def test_a_crafted_tensor_file_is_refused_by_name(pool: Path, file: str, content: bytes):
    (pool / "a" / file).write_bytes(content)
    refused(lambda: Expert.open(pool / "a"), str(pool / "a" / file))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        f'{{"format": {DIGITS}}}',
        f'{{"r": {DIGITS}, "peft_type": "LORA"}}',
        '{"format": 1, "r": NaN, "lora_alpha": Infinity, "peft_type": "LORA"}',
        '"\\ud800"',
        "",
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.parametrize("file", [*JSON_FILES, "pool.json"])
def test_crafted_json_is_refused_by_name(pool: Path, file: str, text: str):
    path = pool / file if file == "pool.json" else pool / "a" / file
    path.write_text(text, "utf8")
    refused(lambda: Pool.open(pool) if file == "pool.json" else Expert.open(pool / "a"), str(path))


@pytest.mark.parametrize("file", [*JSON_FILES, "pool.json"])
def test_a_name_that_stands_twice_in_json_is_refused(pool: Path, file: str):
    """Two readers could take different ones, and a person may look at the harmless one."""
    path = pool / file if file == "pool.json" else pool / "a" / file
    first, value = next((key, value) for key, value in json.loads(path.read_text("utf8")).items() if value)
    twice = path.read_text("utf8").replace("{", f"{{{json.dumps(first)}: {json.dumps(value)}, ", 1)
    assert json.loads(twice) == json.loads(path.read_text("utf8"))
    path.write_text(twice, "utf8")
    refused(lambda: Pool.open(pool) if file == "pool.json" else Expert.open(pool / "a"), str(path), first)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flavour", "sweet"),
        ("format", 2),
        ("format", "1"),
        ("name", "../x"),
        ("name", "a/b"),
        ("name", ""),
        ("name", "."),
        ("name", ".."),
        ("name", "a\n"),
        ("name", "x" * 10_000),
        ("name", None),
        ("task", 3),
        ("base", {}),
        ("base", {"model_id": "x", "config_hash": "y", "weight_hashes": {"a": 1}}),
        ("metrics", {"loss": "low"}),
        ("examples", [{"input": "a"}]),
        ("training", []),
        ("embedder", {"embedder": "x", "dimension": -1, "probe": []}),
        ("prompt", {"kind": "magic"}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_card_of_another_form_is_refused(pool: Path, edit_json: Callable[..., None], field: str, value: Any):
    edit_json(pool / "a" / "card.json", **{field: value})
    refused(lambda: ExpertCard.read(pool / "a"), str(pool / "a" / "card.json"), field)


def test_a_deep_card_that_opens_can_be_written_again(pool: Path, edit_json: Callable[..., None]):
    """What is accepted must not break a later step, such as describing the expert."""
    training: Any = 1
    for _ in range(400):
        training = {"a": training}
    edit_json(pool / "a" / "card.json", training=training)
    if survives(lambda: Expert.open(pool / "a")):
        json.dumps(Expert.open(pool / "a").card.model_dump(mode="json"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "x" * 10_000, "a\n", "a\0", "/etc", "-rf", "é"])
def test_a_bad_name_never_reaches_the_disk(pool: Path, name: str):
    before = sorted(pool.parent.rglob("*"))
    for change in (lambda: Pool.open(pool).add(name), lambda: add_expert(pool, name)):
        refused(change)
    assert sorted(pool.parent.rglob("*")) == before
    assert Pool.open(pool).names == ["a", "b"]


# --- links and things that are no files


@pytest.mark.parametrize("file", EXPERT_FILES)
def test_a_pool_refuses_a_file_that_links_out_of_it(pool: Path, tmp_path: Path, file: str):
    (pool / "a" / file).rename(tmp_path / "outside")
    (pool / "a" / file).symlink_to(tmp_path / "outside")
    refused(lambda: Pool.open(pool), str(pool / "a" / file), "link")


def test_a_pool_refuses_an_expert_that_links_out_of_it(pool: Path, tmp_path: Path):
    (pool / "a").rename(tmp_path / "outside")
    (pool / "a").symlink_to(tmp_path / "outside")
    refused(lambda: Pool.open(pool), str(pool / "a"), "link")


def test_adding_refuses_an_expert_that_links_out_of_the_pool(pool: Path, tmp_path: Path):
    index = Pool.open(pool).remove("b").path.joinpath("pool.json").read_bytes()
    (pool / "b").rename(tmp_path / "b")
    (pool / "b").symlink_to(tmp_path / "b")
    refused(lambda: Pool.open(pool).add("b"), str(pool / "b"), "link")
    assert (pool / "pool.json").read_bytes() == index


@pytest.mark.parametrize("file", EXPERT_FILES)
def test_an_expert_refuses_a_file_that_links_out_of_its_directory(pool: Path, tmp_path: Path, file: str):
    """Outside a pool as inside: a downloaded directory must not read what lies elsewhere on this machine."""
    (pool / "a" / file).rename(tmp_path / "outside")
    (pool / "a" / file).symlink_to(tmp_path / "outside")
    refused(lambda: Expert.open(pool / "a"), file, "link")


@pytest.mark.parametrize("file", EXPERT_FILES)
@pytest.mark.parametrize("kind", ["directory", "loop", "dangling"])
def test_what_is_no_file_is_refused(pool: Path, file: str, kind: str):
    place = pool / "a" / file
    place.unlink()
    if kind == "directory":
        place.mkdir()
    else:
        place.symlink_to(place if kind == "loop" else pool / "nowhere")
    refused(lambda: Expert.open(pool / "a"), file)
    refused(lambda: Pool.open(pool), "a")


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
