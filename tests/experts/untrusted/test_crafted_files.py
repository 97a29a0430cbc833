"""Files that are made to deceive are refused by name."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glider.errors import PoolError
from glider.experts.card import ExpertCard
from glider.experts.expert import Expert
from glider.experts.membership import add_expert, read_index
from glider.experts.pool import Pool
from glider.files.headers import LARGEST_HEADER

from .forms import JSON_FILES, TENSOR_FILES, entry, refused, safetensors, survives

DIGITS = "1" * 5000  # Python refuses to convert so many, with an error of its own


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


@pytest.mark.parametrize("size", ["1" + "0" * 310, str(1 << 60)])
def test_a_file_of_a_size_that_no_disk_has_is_refused_with_the_index(pool: Path, size: str) -> None:
    """`glider pool ls` divided it by a float: `OverflowError`."""
    file = pool / "pool.json"
    index = json.loads(file.read_text("utf8"))
    index["experts"][0]["files"]["card.json"]["size"] = "SIZE"
    file.write_text(json.dumps(index).replace('"SIZE"', size), "utf8")
    with pytest.raises(PoolError, match=r"pool\.json"):
        read_index(pool, None)
