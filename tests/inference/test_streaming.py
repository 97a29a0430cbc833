"""Tokens as text, one at a time, where text may have to end."""

import random
from typing import Any

import pytest
from transformers import AutoTokenizer

from glider.inference.streaming import Decoder

TEXT = "Hello, wörld! 日本語 and 🙂🙃 emoji.\n\n  indented `code` — done.  "


@pytest.fixture(params=["bytes", "smollm2-135m"])
def tokenizer(request: pytest.FixtureRequest, llama_directory: Any) -> Any:
    if request.param == "bytes":
        return AutoTokenizer.from_pretrained(llama_directory)
    from glider.inference.base_model import load_base

    return load_base("smollm2-135m").tokenizer


def pieces(decoder: Decoder, ids: list[int]) -> list[str]:
    return [decoder.add(token) for token in ids] + [decoder.rest()]


def test_the_pieces_are_the_whole_text(tokenizer: Any) -> None:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    decoder = Decoder(tokenizer)
    assert "".join(pieces(decoder, ids)) == tokenizer.decode(ids, skip_special_tokens=True) == decoder.text
    chance = random.Random(0)
    for _ in range(30):  # nonsense, with characters that never become whole
        ids = [chance.randrange(3, 259) for _ in range(60)]
        decoder = Decoder(tokenizer)
        assert "".join(pieces(decoder, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (["world"], "hello "),
        (["lo w", "hello"], ""),
        (["d!", "world!"], "hello "),
        (["!?"], "hello world!"),
        (["o", "llo"], "he"),
    ],
)
def test_text_ends_before_the_first_stop_string(tokenizer: Any, stop: list[str], text: str) -> None:
    ids = tokenizer("hello world!", add_special_tokens=False)["input_ids"]
    decoder = Decoder(tokenizer, stop)
    assert "".join(pieces(decoder, ids)) == text == decoder.text
    assert decoder.stopped == (stop != ["!?"])
    if decoder.stopped:
        assert len(decoder.ids) <= len(ids)
        assert all(one not in tokenizer.decode(decoder.ids[:-1]) for one in stop)  # it ends with what brought it
