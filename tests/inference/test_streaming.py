"""Tokens as text, one at a time, where text may have to end."""

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from glider.inference.streaming import Decoder

TEXT = "Hello, wörld! 日本語 and 🙂🙃 emoji.\n\n  indented `code` — done.  "


@pytest.fixture(params=["bytes", "smollm2-135m"])
def tokenizer(request: pytest.FixtureRequest, llama_directory: Any) -> Any:
    if request.param == "bytes":
        return AutoTokenizer.from_pretrained(llama_directory)
    from glider.inference.base_model import load_base

    return load_base("smollm2-135m").tokenizer


def pieces(decoder: Decoder, ids: Any) -> list[str]:
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


BYTES = [f"<0x{byte:02X}>" for byte in "é日🙂\ufffd A".encode()] + ["<0xff>"]
_FALLBACK = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
FALLBACKS = {
    "llama": decoders.Sequence([*_FALLBACK, decoders.Strip(" ", 1, 0)]),
    "gemma": decoders.Sequence(_FALLBACK),
    "words": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
}


@pytest.fixture(params=FALLBACKS)
def falling_back(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer of words whose other characters are tokens for their bytes."""
    words = ["<pad>", "</s>", "<unk>", "▁", "▁It", "▁é", "wor", "日", "s", "\ufffd", *dict.fromkeys(BYTES)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.decoder = FALLBACKS[request.param]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def test_runs_of_bytes_are_the_text_of_the_tokenizer(falling_back: PreTrainedTokenizerFast) -> None:
    """A run that is no text is marks of replacement from its beginning on, which was streamed as text."""
    written: Any = falling_back.convert_tokens_to_ids(
        ["▁It", "<0xC3>", "<0xA9>", "s", "<0xC3>", "<0xA9>", "<0xff>", "▁It"]
    )
    assert pieces(Decoder(falling_back), written)[2:] == ["", "és", "", "", "", "\ufffd\ufffd\ufffd It", ""]
    chance = random.Random(3)
    for _ in range(1000):
        ids = [chance.randrange(len(falling_back)) for _ in range(chance.randrange(1, 14))]
        for hides in (True, False):
            decoder = Decoder(falling_back, special=not hides)
            text = falling_back.decode(ids, skip_special_tokens=hides)
            assert "".join(pieces(decoder, ids)) == text == decoder.text


@pytest.fixture
def cleaning() -> PreTrainedTokenizerFast:
    """A tokenizer of words that takes spaces before marks away, as T5's of transformers 4.31 to 4.4x."""
    words = ["▁", "▁It", "▁do", "▁does", "▁n", "'", "▁'", "t", "s", "m", "ve", "re", "▁work", "▁.", ".", "▁,", ","]
    words += ["▁!", "▁?", "?", "▁I", "'m", "'s", "n't", "▁t", "▁s", "▁ve"]
    words = ["<pad>", "</s>", "<unk>", *words]
    tokenizer = Tokenizer(models.Unigram([(word, -float(i) / 10) for i, word in enumerate(words)], unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=True,
    )


def test_pieces_of_a_tokenizer_that_cleans_up_spaces_are_its_text(cleaning: PreTrainedTokenizerFast) -> None:
    chance = random.Random(1)
    texts = [
        ["▁It", "▁do", "▁n", "'", "t", "▁work", "▁.", "▁It", "▁!"],
        ["▁It", "▁work", "s", "▁,", "▁I", "▁'", "m", "▁.", "▁It"],
    ]
    rows = [cleaning.convert_tokens_to_ids(text) for text in texts]
    assert [cleaning.decode(row) for row in rows] == ["It don't work. It!", "It works, I'm. It"]
    rows += [[chance.randrange(3, len(cleaning)) for _ in range(40)] for _ in range(200)]
    for ids in rows:
        decoder = Decoder(cleaning)
        assert "".join(pieces(decoder, ids)) == cleaning.decode(ids) == decoder.text


def test_a_stop_string_is_looked_for_in_the_cleaned_text(cleaning: PreTrainedTokenizerFast) -> None:
    ids = cleaning.convert_tokens_to_ids(["▁It", "▁do", "▁n", "'", "t", "▁work", "▁."])
    decoder = Decoder(cleaning, ["n't"])
    assert "".join(pieces(decoder, ids)) == "It do" and decoder.stopped


def test_a_stop_longer_than_the_answer_costs_no_more(tokenizer: Any) -> None:
    """Every beginning of it was compared with the text at every token: one of some megabytes took hours."""
    ids = tokenizer("aaa" * 20, add_special_tokens=False)["input_ids"]
    decoder = Decoder(tokenizer, stop=("a" * 5_000_000, "b" * 5_000_000))
    assert [decoder.add(token) for token in ids] == [""] * len(ids)
    assert decoder.rest() == "aaa" * 20


def test_a_special_token_within_an_answer_costs_the_next_word_no_space(cleaning: PreTrainedTokenizerFast) -> None:
    ids = cleaning.convert_tokens_to_ids(["▁It", "<unk>", "▁work", "s", "<pad>", "<unk>", "▁I", "▁n", "▁'", "▁t"])
    decoder = Decoder(cleaning)
    assert "".join(pieces(decoder, ids)) == cleaning.decode(ids, skip_special_tokens=True) == "It works In't"
    chance = random.Random(2)
    for _ in range(300):
        ids = [chance.randrange(len(cleaning)) for _ in range(9)]
        assert "".join(pieces(Decoder(cleaning), ids)) == cleaning.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("<unk>", "It"),
        ("</s><unk>", "It works"),
        ("works</s>", "It "),
        ("<unk></s>", "It works It"),
        ("s I", "It work"),
    ],
)
def test_a_stop_string_may_hold_special_tokens(cleaning: PreTrainedTokenizerFast, stop: str, text: str) -> None:
    ids = cleaning.convert_tokens_to_ids(["▁It", "<unk>", "▁work", "s", "</s>", "<unk>", "▁It"])
    decoder = Decoder(cleaning, [stop])
    assert "".join(pieces(decoder, ids)) == text == decoder.text
    assert decoder.stopped == (text != "It works It")


def test_a_stop_string_may_be_a_special_token_without_a_role(cleaning: PreTrainedTokenizerFast) -> None:
    """As `<|eot_id|>` where no setting of the tokenizer names it: it was left out, and nothing stopped."""
    cleaning.backend_tokenizer.add_special_tokens([AddedToken("<|turn|>", special=True)])
    turn: Any = cleaning.convert_tokens_to_ids("<|turn|>")
    assert turn not in cleaning.all_special_ids
    ids: list[Any] = [cleaning.convert_tokens_to_ids(word) for word in ("▁It", "▁work", "s", "<|turn|>", "▁It")]
    decoder = Decoder(cleaning, ["<|turn|>"])
    assert "".join(pieces(decoder, ids)) == "It works" and decoder.stopped


def test_a_run_of_spaces_takes_no_time(cleaning: PreTrainedTokenizerFast) -> None:
    spaces = cleaning.convert_tokens_to_ids(["▁"] * 400 + ["▁It"])
    assert "".join(pieces(Decoder(cleaning), spaces)) == cleaning.decode(spaces)
