"""JSON that strangers wrote, bounded before it is parsed.

What a parser makes of a text may be forty times its size, and what is checked afterwards more. So its bytes, its depth
and the number of its members are counted first, on the text, in one pass each.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glider.files.opening import UnfitFile, read_bytes

LARGEST_JSON = 64 << 20  # bytes of the largest of our files, the index of a pool of some 4,000 experts
MOST_MEMBERS = 500_000  # values of objects and arrays, over a whole file
DEEPEST = 64
LARGEST_RESULT = 256 << 20  # bytes of the result of an evaluation, with a record of each row
MOST_OF_RESULT = 5_000_000
_BLOCK = 64 << 10  # bytes
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LONG_NUMBER = re.compile(rb"(?<![0-9])[0-9]{300}")  # beyond it an integer is larger than any float
_LONG_EXPONENT = re.compile(rb"[0-9][eE]\+?[0-9]{2}")  # with one digit, and digits below that bound, all are finite
_SPACE: Any = re.compile(r"[ \t\n\r]*")  # matches at every place
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path, longest: int = LARGEST_JSON, most: int = MOST_MEMBERS) -> Any:
    """Parse a stranger's JSON file; as `parse_json`, and `OSError` where there is none."""
    return parse_json(read_bytes(path, longest), most)


def parse_json(content: bytes, most: int = MOST_MEMBERS) -> Any:
    """Parse JSON in UTF-8. `ValueError` says what is wrong with it: too many members, too deep, a name twice, half a
    character, numbers of hundreds of digits or beyond floats, NaN."""
    require_small(content, most)
    value = json.loads(content.decode("utf8"), **_hooks(content))
    if _HALF.search(content):
        _refuse_halves(value)
    return value


def items_of(text: str) -> Iterator[Any]:
    """The items of a JSON array whose text is small enough (`require_small`), one after the other: the parsed items are
    not held beside the text. Raises `ValueError` and `RecursionError` as `parse_json`."""
    decoder = json.JSONDecoder(**_hooks(text.encode("utf8", "surrogatepass")))
    halves = "\\u" in text
    place = _SPACE.match(text).end()
    if text[place : place + 1] != "[":
        raise json.JSONDecodeError("Expecting '['", text, place)
    place = _SPACE.match(text, place + 1).end()
    mark = text[place : place + 1]
    while mark != "]":
        value, place = decoder.raw_decode(text, place)
        if halves:
            _refuse_halves(value)
        yield value
        place = _SPACE.match(text, place).end()
        mark = text[place : place + 1]
        if mark == ",":
            place = _SPACE.match(text, place + 1).end()
        elif mark != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
    place = _SPACE.match(text, place + 1).end()
    if place < len(text):
        raise json.JSONDecodeError("Extra data", text, place)


def require_small(content: bytes | bytearray, most: int) -> None:
    """Raise `UnfitFile` for a text that a parser would make far more of: counted, before it is parsed."""
    if b"\0" in content:  # a file of zeros, which takes no place on its disk
        raise UnfitFile("a byte of zero")
    if content.count(b"\\") > 4 * most or content.count(b'"') - content.count(b'\\"') > 4 * most + 2:
        raise UnfitFile(f"more than {4 * most} quotes or escapes")  # what cuts strings out below is slow at them
    plain = _without_strings(content)
    members = plain.count(b",") + plain.count(b"[") + plain.count(b"{")
    if members > most or plain.count(b"]") + plain.count(b"}") > most:
        raise UnfitFile(f"more than {most} members")
    if _LONG_NUMBER.search(plain):
        raise UnfitFile("a number of hundreds of digits")  # of thousands they are slow to read, and to turn into text
    if _depth(plain) > DEEPEST:
        raise UnfitFile("too deep nesting")


def _without_strings(text: bytes | bytearray) -> bytes | bytearray:
    """What stands outside strings; a pattern of these, with their escapes, took sixty times the text's size."""
    if b'"' not in text:
        return text
    if b"\\" in text:  # `bytearray.replace` copies in any case
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    plain, inside = bytearray(), 0
    for begin in range(0, len(text), _BLOCK):
        pieces = text[begin : begin + _BLOCK].split(b'"')
        plain += b"".join(pieces[inside::2])
        inside = (inside + len(pieces) - 1) % 2
    return plain


def _depth(plain: bytes | bytearray) -> int:
    depth = deepest = 0
    for sign in plain.translate(None, _NOT_BRACKETS):
        depth += 1 if sign in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of names and values; raises `UnfitFile` for a name that stands twice."""
    seen = dict(pairs)
    if len(seen) < len(pairs):
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise UnfitFile(f"the name {name[:60]!r} twice")
            names.add(name)
    return seen


def _hooks(content: bytes) -> dict[str, Any]:
    """What of a text is looked at while it is parsed; numbers only where one may be beyond floats."""
    hooks: dict[str, Any] = {"object_pairs_hook": unique_names, "parse_constant": _refuse}
    return hooks | ({"parse_float": _finite} if _LONG_EXPONENT.search(content) else {})


def _finite(text: str) -> float:
    """A number with a fraction or an exponent; Python reads one that is too large as infinity."""
    value = float(text)
    if math.isinf(value):
        raise UnfitFile(f"the number {text[:60]}, which is too large")
    return value


def _refuse(constant: str) -> Any:
    raise UnfitFile(f"{constant}, which is no JSON")


def _refuse_halves(value: Any) -> None:
    """Half of a character outside the basic plane is a string that nothing can write or print."""
    layer = [value]
    while layer:
        below = []
        for one in layer:
            if isinstance(one, dict):
                below += [*one, *one.values()]
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str) and any("\ud800" <= letter <= "\udfff" for letter in one):
                raise UnfitFile(f"half a character in {one[:60]!r}")
        layer = below
