"""The header of a GGUF file promises no more than lies in the file."""

import struct
from pathlib import Path

import pytest

from glider.files.gguf_header import require_gguf
from glider.files.opening import UnfitFile

U32, TEXT, ARRAY = 4, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, kind: int, content: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + content


def number(name: str, value: int) -> bytes:
    return entry(name, U32, struct.pack("<I", value))


def tensor(name: str, *shape: int, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)


def header(entries: list[bytes], tensors: list[bytes], *counts: int) -> bytes:
    head = struct.pack("<4sIQQ", b"GGUF", 3, *(counts or (len(tensors), len(entries))))
    return head + b"".join(entries) + b"".join(tensors)


LLAMA = entry("general.architecture", TEXT, text("llama"))
NUMBERS = [LLAMA, number("llama.block_count", 2), number("llama.embedding_length", 8)]
WORDS = entry("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", TEXT, 3) + text("a") + text("b") + text("c"))
SCORES = entry("tokenizer.ggml.scores", ARRAY, struct.pack("<IQ3f", 6, 3, 1.0, 2.0, 3.0))
WEIGHTS = [tensor("token_embd.weight", 8, 3), tensor("blk.0.attn_q.weight", 8, 8)]


def test_a_small_model_is_taken(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(header([*NUMBERS, WORDS, SCORES], WEIGHTS) + bytes(400))
    require_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "ends within"),
        (b"GGUF", "ends within"),
        (b"GGML" + header(NUMBERS, WEIGHTS)[4:], "no GGUF"),
        (header(NUMBERS, [], 0, 2**62), "entries"),
        (header(NUMBERS, [], 2**62, 3), "tensors"),
        (header([entry("x", TEXT, struct.pack("<Q", 2**60))], []), "bytes of a text"),
        (header([entry("x", ARRAY, struct.pack("<IQ", U32, 2**40))], []), "items of 'x'"),
        (header([entry("x", ARRAY, struct.pack("<IQ", TEXT, 2**40))], []), "items of 'x'"),
        (header([entry("x", ARRAY, struct.pack("<IQ", ARRAY, 1) * 1000)], []), "arrays of arrays"),
        (header([entry("x", 77, b"")], []), "type 77"),
        (header(NUMBERS, [tensor("w", 2**32, 2**32, 2**31, 2)]), "weights in its tensors"),
        (header(NUMBERS, [text("w") + struct.pack("<I", 2**31)]), "dimensions of 'w'"),
        (header(NUMBERS, [tensor("w", 8, offset=2**63)]), "offset of 'w'"),
        (header([LLAMA], WEIGHTS) + bytes(400), "no llama.block_count"),
        (header([LLAMA, number("llama.block_count", 2**31), NUMBERS[2]], WEIGHTS) + bytes(400), "by its numbers"),
        (header([*NUMBERS[:2], number("llama.embedding_length", 2**31)], WEIGHTS) + bytes(400), "by its numbers"),
        (header([*NUMBERS, number("llama.feed_forward_length", 2**31)], WEIGHTS) + bytes(400), "by its numbers"),
        (header([*NUMBERS, number("llama.expert_count", 2**31)], WEIGHTS) + bytes(400), "by its numbers"),
        (header([LLAMA, entry("llama.block_count", TEXT, text("9")), NUMBERS[2]], WEIGHTS), "no llama.block_count"),
        (header([*NUMBERS, number("llama.vocab_size", 2**31)], WEIGHTS) + bytes(400), "by its numbers"),
    ],
)
def test_what_promises_more_than_lies_there_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    """Without numbers a file is a model of transformers' default sizes; counts of 2**62 were errors of its reader."""
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(UnfitFile, match=why):
        require_gguf(tmp_path / "model.gguf")
