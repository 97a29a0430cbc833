"""JSON is bounded before it is parsed, and strict."""

import json
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glider.files.json_text import items_of, parse_json, require_small

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON, st.booleans())
def test_what_is_json_is_read_as_it_is(value: object, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.lists(JSON, max_size=6), st.booleans(), st.sampled_from([None, 1]))
def test_items_of_an_array_are_those_of_the_whole(values: list[object], ascii_only: bool, indent: int | None) -> None:
    assert list(items_of(f" {json.dumps(values, ensure_ascii=ascii_only, indent=indent)}\n")) == values


@given(st.text('[]{},:"1a \n', max_size=12))
def test_what_is_no_array_has_no_items(text: str) -> None:
    try:
        wanted = json.loads(text)
    except ValueError:
        wanted = None
    if isinstance(wanted, list):
        assert list(items_of(text)) == wanted
    else:
        with pytest.raises(ValueError, match=r"Expecting|Extra|Unterminated|Illegal|Invalid|twice"):
            list(items_of(text))


@pytest.mark.parametrize("text", ['["\\ud800"]', "[1, NaN]", "[1e400]", '[{"a": 1, "a": 2}]'])
def test_an_item_that_is_wrong_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"half a character|NaN|twice|too large"):
        list(items_of(text))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" + b"[]," * 1_000_000 + b"1]", "members"),
        (b"{" + b",".join(b'"k%d":1' % i for i in range(600_000)) + b"}", "members|quotes"),
        (b'"' * 10_000_000, "quotes"),
        (bytes(100), "zero"),
        (b'"' + b"\\\\" * 5_000_000 + b'"', "quotes or escapes"),
        (b"[" * 100_000, "deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "deep"),
        (b"{" + b",".join(b'"a":1' for _ in range(200_000)) + b"}", "'a' twice"),
        (b"]" * 600_000, "more than 500000 members"),
        (b"[" + b"}" * 600_000, "more than 500000 members"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' twice"),
        (b'["\\ud800"]', "half a character"),
        (b'{"\\udc00": 1}', "half a character"),
        (b'{"a": [{"b": "x\\uDFFFy"}]}', "half a character"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e400]", "too large"),  # was infinity
        (b"[" + b"9" * 250 + b"e+99]", "too large"),
        (b"[" + b"1" * 5000 + b"]", "digits"),
        (b"[" + b"1" * 400 + b"]", "digits"),  # `OverflowError` wherever it met a float
        (b"\xff", "decode"),
        (b"", "Expecting"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_too_much_or_wrong_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(content)


def test_brackets_and_commas_within_strings_do_not_count() -> None:
    text = '[{,\\"' * 10_000
    assert parse_json(json.dumps({"a": text}).encode(), most=50_000) == {"a": text}
    with pytest.raises(ValueError, match="more than 50 members"):
        parse_json(json.dumps(list(range(60))).encode(), most=50)


def test_digits_are_looked_at_once() -> None:
    """Numbers just short enough took 12 seconds for 60 MB: each digit began a search of its own."""

    def seconds(content: bytes) -> float:
        began = time.process_time()
        require_small(content, 500_000)
        return time.process_time() - began

    digits = b"[" + b",".join([b"1" * 299] * 30_000) + b"]"
    letters = digits.replace(b"1", b"a")
    assert min(seconds(digits) for _ in range(3)) < 5 * min(seconds(letters) for _ in range(3))


def test_a_whole_character_of_two_halves_is_one() -> None:
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize("text", [b'["' + b"\\\\" * 900_000 + b'"]', b"[" + b'"",' * 490_000 + b'""]'], ids=len)
def test_counting_takes_little_memory(text: bytes) -> None:
    """Of escapes it took 60 times their size, of strings 57 times."""
    tracemalloc.start()
    try:
        require_small(text, 500_000)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    finally:
        tracemalloc.stop()


@given(st.text('[]{},:"\\a1', max_size=40), st.integers(1, 7))
def test_strings_are_left_out_whatever_they_hold(text: str, block: int) -> None:
    """Blocks end anywhere; brackets within strings are none."""
    content = json.dumps([text, {text: [text]}, *range(200)]).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glider.files.json_text._BLOCK", block)
        require_small(content, 204)
        with pytest.raises(ValueError, match="more than 203 members"):
            require_small(content, 203)


def test_refusing_takes_little_memory() -> None:
    content = b"[" + b"[]," * 5_000_000 + b"1]"
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="members"):
            parse_json(content)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(content)
    finally:
        tracemalloc.stop()
