"""Files of random bytes, values and mutations are read or refused, never half."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from glider.experts.card import ExpertCard
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.peft_format import read_layout
from glider.experts.pool import Pool
from glider.files.headers import read_header

from .forms import JSON_FILES, safetensors, survives

READERS: dict[str, Callable[[Path], Any]] = {
    "adapter_config.json": read_layout,
    "card.json": ExpertCard.read,
    "adapter_model.safetensors": lambda directory: read_header(directory / "adapter_model.safetensors"),
    "glider.safetensors": lambda directory: read_header(directory / "glider.safetensors"),
}


fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just(10**400)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


mutations = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "extend", "splice"]), st.integers(0, 1 << 16), st.binary(max_size=12)),
    min_size=1,
    max_size=4,
)


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
