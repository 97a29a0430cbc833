"""Tokens that are no text by themselves, told by their bytes and by their places."""

from typing import Any

import openai
import pytest
from llguidance.hf import from_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from glider.serve.token_texts import Offsets, TokenTexts, prompt_offsets

from ..conftest import byte_tokenizer
from .test_chat import TEXTS, ask
from .test_completions import complete


def sentence_pieces() -> PreTrainedTokenizerFast:
    """As Llama's of SentencePiece: a space is part of the word after it, and left out at a text's beginning."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    letters = ["▁", "h", "e", "l", "o", "he", "ll", "llo", "hello", "▁hello"]
    for token in (*(f"<0x{byte:02X}>" for byte in range(256)), *letters):
        vocabulary[token] = len(vocabulary)
    merges = [("h", "e"), ("l", "l"), ("ll", "o"), ("he", "llo"), ("▁", "hello")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(params=[False, True], ids=["bytes", "pieces"])
def texts(request: pytest.FixtureRequest) -> tuple[Any, TokenTexts]:
    tokenizer = sentence_pieces() if request.param else byte_tokenizer(chat=False)
    return tokenizer, TokenTexts(tokenizer, from_tokenizer(tokenizer))


def test_the_bytes_of_tokens_are_those_of_the_text(texts: tuple[Any, TokenTexts]) -> None:
    """A part of a character was told as the bytes of U+FFFD, and the space before a word was lost."""
    tokenizer, told = texts
    text = "hello é hello 日"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    content = b"".join(told.content(token) or b"" for token in ids)
    assert content.removeprefix(b" ") == text.encode()
    assert {told.text(token) for token in ids} >= {"\\xc3", "\\xa9"}
    assert told.text(ids[-1], mark="bytes:") == "bytes:\\xa5"


@pytest.mark.parametrize("text", ["hello é hello 日!", "é", "hello"])
def test_places_are_those_in_the_text(texts: tuple[Any, TokenTexts], text: str) -> None:
    tokenizer, told = texts
    ids = tokenizer(text).input_ids
    places = prompt_offsets(told, ids, text)
    data, plain = text.encode(), [token for token in ids if token not in tokenizer.all_special_ids]
    before = [b"".join(told.content(one) or b"" for one in plain[:number]).lstrip() for number in range(len(plain))]
    assert all(data.startswith(one) for one in before)
    expected = [len(one.decode(errors="ignore")) for one in before]
    assert places[len(ids) - len(plain) :] == expected
    assert places[: len(ids) - len(plain)] == [0] * (len(ids) - len(plain))  # of what the text does not show
    offsets = Offsets(told, start=5)
    assert [offsets.of(token) - 5 for token in ids] == places


def test_what_no_table_has_is_not_made_up() -> None:
    tokenizer = byte_tokenizer(chat=False)
    told, (half, _) = TokenTexts(tokenizer), tokenizer("é").input_ids
    assert (told.content(half), told.text(half)) == (None, "\ufffd")
    assert told.content(tokenizer("a").input_ids[0]) == b"a"


def test_a_chat_tells_bytes(client: openai.OpenAI) -> None:
    choice = ask(client, TEXTS[0], logprobs=True, top_logprobs=20, max_tokens=30).choices[0]
    content = b"".join(bytes(one.bytes) for one in choice.logprobs.content)
    assert content.decode(errors="replace") == choice.message.content
    assert "\ufffd" in choice.message.content
    for one in choice.logprobs.content:
        assert len({tuple(top.bytes) for top in one.top_logprobs}) == 20


def test_completions_tell_as_many_as_were_asked_for(client: openai.OpenAI) -> None:
    """Tokens of one text were one entry, so that another token could pass for the likeliest."""
    choice = complete(client, "é ü", echo=True, logprobs=5, max_tokens=4).choices[0]
    logprobs = choice.logprobs
    assert all(len(top) == 5 for top in logprobs.top_logprobs[1:])
    assert logprobs.text_offset[:6] == [0, 0, 1, 2, 2, 3]
    assert logprobs.tokens[:3] == ["bytes:\\xc3", "bytes:\\xa9", " "]
    for number, offset in enumerate(logprobs.text_offset):
        if not (token := logprobs.tokens[number]).startswith("bytes:"):
            assert choice.text[offset:].startswith(token)
