"""Changes of files that a stranger, a bad disk or a bad day makes; all by one generator of random numbers."""

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

WORDS = (
    *(b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"null", b"true", b'""', b"{}", b"[]", b"9" * 5000, b"1e-400"),
    *(b'"\\ud800"', b'"\\udfff\\ud800"', b'"\\u0000"', b'"\\u001b[31m"', b'"\\u202e"', b'"[/x]"', b"\x00", b"\xff\xfe"),
    *(b'"../../x"', b'"/etc/passwd"', b'"a/b"', b'"."', b'"CON"', b'"e0 "', b'"' + b"x" * 5000 + b'"'),
    *(b'"(a|aa)*$"', b'".*.*.*.*!"', b'"(?i)q"', b'"a{99999999999}"', b'"' + b"(" * 2000 + b'"', b'"[[:alpha:]]"'),
    *(b"[" * 300, b"{" * 300, b'{"a":' * 300, b"," * 50, b"\r\n", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-320),
    *("", "x", "\ud800", "\x00", "\x1b[31m", "[/x]", "../x", "/etc/passwd", "a" * 3000, "e0", "LORA", "\u202e"),
    *([], {}, [[]], [None], [[[[]]]], {"": ""}, ["a"] * 50, list(range(300)), {str(i): i for i in range(300)}),
)

_LARGEST = 16 << 20  # bytes of a file that is changed once more


def mutate(path: Path, chance: random.Random, others: list[bytes]) -> None:
    """Change a file once or several times, in its bytes, in its values, or in what kind of thing it is."""
    if path.stat().st_size > _LARGEST:
        return
    if chance.random() < 0.02:
        _replace(path, chance)
        return
    content = path.read_bytes()
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        structured = _in_values if path.suffix in (".json", ".jsonl") else _in_header
        changed = structured(content, chance) if chance.random() < 0.6 else None
        content = _in_bytes(content, chance, others) if changed is None else changed
    path.write_bytes(content)


def _replace(path: Path, chance: random.Random) -> None:
    """Another kind of thing in the file's place."""
    path.unlink()
    match chance.randrange(6):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to("/dev/zero")
        case 2:
            path.mkdir()
        case 3:
            path.symlink_to(path.name)
        case 4:
            path.touch()
            os.truncate(path, 1 << chance.randrange(20, 44))
        case _:
            pass


def _in_bytes(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    at = chance.randrange(len(content) + 1)
    end = min(len(content), at + chance.choice((1, 2, 8, 64, 1000)))
    match chance.randrange(8):
        case 0:  # a bit
            return (
                content[:at]
                + bytes(byte ^ 1 << chance.randrange(8) for byte in content[at : at + 1])
                + content[at + 1 :]
            )
        case 1:
            return content[:at] + chance.randbytes(end - at) + content[end:]
        case 2:
            return content[:at] + content[end:]
        case 3:
            return content[:end] + content[at:end] * chance.choice((1, 2, 100)) + content[end:]
        case 4:
            return content[:at]
        case 5:
            return content[:at] + chance.choice(WORDS) + content[at:]
        case 6:
            return content[:at] + chance.choice(WORDS) + content[end:]
        case _:
            other = chance.choice(others)
            begin = chance.randrange(len(other) + 1)
            return content[:at] + other[begin : begin + chance.choice((8, 100, 5000))] + content[end:]


def _in_values(content: bytes, chance: random.Random) -> bytes | None:
    """JSON with another value, name or member somewhere; None for what is no JSON any more."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    places: list[tuple[Any, Any]] = []
    layer = [value]
    while layer:
        holder = layer.pop()
        members = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for name, member in members:
            places.append((holder, name))
            layer.append(member)
    if not places:
        return None
    holder, name = chance.choice(places)
    match chance.randrange(5):
        case 0 | 1:
            holder[name] = chance.choice(VALUES)
        case 2:
            del holder[name]
        case 3 if isinstance(holder, dict):
            holder[str(chance.choice(VALUES))[:4000]] = holder[name]
        case 4 if type(holder[name]) in (int, float):
            holder[name] = holder[name] * chance.choice((-1, 2, 1000, 0.5)) + chance.choice((0, 1, -1))
        case _:
            other, place = chance.choice(places)
            holder[name] = json.loads(json.dumps(other[place])) if place in other or isinstance(other, list) else None
    text = json.dumps(value)
    if chance.random() < 0.1 and text.startswith("{"):  # a name twice
        text = "{" + text[1:-1] + ("," if len(text) > 2 else "") + text[1:]
    return text.encode()


def _in_header(content: bytes, chance: random.Random) -> bytes | None:
    """A safetensors file whose header says something else, with its length right; None for any other file."""
    length = int.from_bytes(content[:8], "little")
    if content[8:9] != b"{" or length > len(content) - 8:
        return None
    header = _in_values(content[8 : 8 + length], chance)
    if header is None:
        return None
    if chance.random() < 0.1:
        return struct.pack("<Q", chance.choice((0, 1, 2**31, 2**63, len(header) + 1))) + header + content[8 + length :]
    return struct.pack("<Q", len(header)) + header + content[8 + length :]
