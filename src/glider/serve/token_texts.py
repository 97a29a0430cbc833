"""What single tokens stand for. Many are no text by themselves: part of a character, or a word whose space before it a
tokenizer leaves out where it decodes the word alone."""

import codecs
from collections.abc import Sequence
from typing import Any

from glider.inference.streaming import special_tokens

_REPLACED = "\ufffd".encode()
_CONTINUES, _BEGINS = 0x80, 0xC0  # bytes of UTF-8 from which on they go on with a character, and begin one


class TokenTexts:
    """The tokens of one base. `spelling` is llguidance's table of their bytes; without it they are decoded alone."""

    def __init__(self, tokenizer: Any, spelling: Any = None):
        self._tokenizer, self._spelling = tokenizer, spelling
        self._hidden = special_tokens(tokenizer)

    def content(self, token: int) -> bytes | None:
        """A token's bytes; None where they are not known."""
        if self._spelling is not None:
            return self._spelling.decode_bytes([token])
        text = self.alone(token)
        return None if "\ufffd" in text else text.encode()

    def alone(self, token: int) -> str:
        """What the tokenizer makes of a token without others around it."""
        return self._tokenizer.decode([token])

    def text(self, token: int, mark: str = "") -> str:
        """A token as text; `mark` and its bytes, written as \\xNN, where it is part of a character."""
        content = self.content(token)
        if content is None:
            return self.alone(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return mark + "".join(f"\\x{byte:02x}" for byte in content)

    def shown(self, token: int) -> str:
        """A token as it is shown to people."""
        content = self.content(token)
        return self.alone(token) if content is None else content.decode(errors="replace")

    def scored(self, token: int, logprob: float | None, likeliest: Sequence[tuple[int, float]]) -> dict[str, Any]:
        """A token with its log-probability and those of the likeliest, as OpenAI's APIs tell them."""
        top = [self._entry(other, value) for other, value in likeliest]
        return {**self._entry(token, logprob), "top_logprobs": top}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        content = self.content(token)
        return {"token": self.text(token), "logprob": logprob, "bytes": None if content is None else list(content)}

    def hidden(self, token: int) -> bool:
        """Whether an answer's text leaves it out."""
        return token in self._hidden


class Offsets:
    """Where the tokens of an answer begin in its text, in characters, token by token."""

    def __init__(self, texts: TokenTexts, start: int = 0):
        self._texts, self._length = texts, start
        self._decoder = codecs.getincrementaldecoder("utf8")("replace")
        self._first = True

    def of(self, token: int) -> int:
        """The place of the next token."""
        if self._texts.hidden(token):
            return self._length
        content, alone = self._texts.content(token), self._texts.alone(token)
        if content is None:
            content = alone.encode()
        if self._first and content.startswith(b" ") and not alone.startswith(" "):
            content = content[1:]
        self._first = False
        if content and not _CONTINUES <= content[0] < _BEGINS:
            self._length += len(self._decoder.decode(b"", True))  # a character that was begun will not end
        start = self._length
        self._length += len(self._decoder.decode(content))
        return start


def prompt_offsets(texts: TokenTexts, tokens: Sequence[int], text: str) -> list[int]:
    """Where the tokens of a prompt begin in its text. Those that it does not show take no place in it."""
    data, place, length, offsets = text.encode(), 0, 0, []
    decoder = codecs.getincrementaldecoder("utf8")("replace")
    for token in tokens:
        offsets.append(length)
        content = texts.content(token)
        if content is None:
            content = texts.alone(token).encode()
        parts = (content, content[1:]) if content.startswith(b" ") else (content, _REPLACED)
        taken = next((len(part) for part in parts if data.startswith(part, place)), 0)
        length += len(decoder.decode(data[place : place + taken]))
        place += taken
    return offsets
