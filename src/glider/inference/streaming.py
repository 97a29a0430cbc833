"""Text as it is written."""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

_UNFINISHED = "\ufffd"  # the end of a multi-byte character is still to come


@dataclass(frozen=True)
class Piece:
    """New text of one row of a batch; `ended` when it is the row's last."""

    row: int
    text: str
    ended: bool = False


class Decoder:
    """The text of one answer, token by token.

    Text ends before the first stop string (then `stopped` is true, and `ids` are the tokens up to it), which may be or
    hold a special token. Text that may begin a stop string, or that a tokenizer which cleans up spaces may still
    change, is held back; so is a run of tokens that stand for single bytes, to its end, where a tokenizer makes text of
    the whole run or of none of it. Each token is decoded with the few before it, not with all. An `exact` text is not
    cleaned up, and with `special` tokens are shown that are otherwise left out.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), exact: bool = False, special: bool = False):
        self._tokenizer, self._special = tokenizer, special
        self._marks = {} if special else _marks(tokenizer, stop)  # of special tokens within stop strings
        self._stop = tuple(dict.fromkeys([*stop, *(_marked(one, tokenizer, self._marks) for one in stop)]))
        self.ids: list[int] = []
        self.text = ""  # without what is held back
        self.stopped = False
        self._held = ""
        self._clean = None if exact else _cleaning(tokenizer)
        self._unclean = ""  # text that is not cleaned up yet
        self._bytes = _has_byte_tokens(tokenizer)
        self._within_bytes = False  # whether the last token with a text was a byte of a run that may go on
        self._before, self._read = 0, 0  # tokens before `_read` are in the text; those from `_before` are their context

    @property
    def stops(self) -> bool:
        """Whether there is a stop string."""
        return bool(self._stop)

    def add(self, token: int, last: bool = False) -> str:
        """The new text of a token; empty while a character is incomplete, unless it is the last token."""
        if self.stopped:
            return ""
        self.ids.append(token)
        if self._bytes:
            self._within_bytes = self._is_byte(token) or (self._within_bytes and token in self._hidden)
        return self.rest() if last else self._shown(self._cleaned(self._new(), False), False)

    def rest(self) -> str:
        """The text held back, at the end of the answer."""
        return "" if self.stopped else self._shown(self._cleaned(self._new(whole=True), True), True)

    def _is_byte(self, token: int) -> bool:
        return _BYTE.fullmatch(_content(self._tokenizer, token) or "") is not None

    @cached_property
    def _hidden(self) -> frozenset[int]:
        return frozenset() if self._special else special_tokens(self._tokenizer)

    def _new(self, whole: bool = False) -> str:
        """The text of the tokens not yet decoded."""
        unread = self.ids[self._read :]
        mark = self._marks.get(unread[-1], "") if unread else ""
        if self._within_bytes and not mark and not whole:
            return ""
        context = self._decoded(self.ids[self._before : self._read])
        text = self._decoded(self.ids[self._before :])
        if not mark and ((text.endswith(_UNFINISHED) and not whole) or len(text) < len(context)):
            return ""
        if len(text) > len(context):  # a context without text, of special tokens, would cost the next word its space
            self._before = self._read
        self._read = len(self.ids)
        return text[len(context) :] + mark

    def _cleaned(self, new: str, last: bool) -> str:
        """The text that no later token can change, cleaned up."""
        if self._clean is None:
            return new
        text = self._unclean + new
        cut = len(text) if last else _stable_length(text)
        self._unclean = text[cut:]
        return self._clean(text[:cut])

    def _shown(self, new: str, last: bool) -> str:
        """The part of the new text and of the text held back that can be released."""
        text = self._held + new
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held, text = True, "", text[: min(places)]
        elif last:
            self._held = ""
        else:
            lengths = ((stop, n) for stop in self._stop for n in range(1, min(len(stop), len(text) + 1)))
            held = max((n for stop, n in lengths if text.endswith(stop[:n])), default=0)
            text, self._held = text[: len(text) - held], text[len(text) - held :]
        for mark in self._marks.values():
            text = text.replace(mark, "")
        self.text += text
        return text

    def _decoded(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(
            list(ids), skip_special_tokens=not self._special, clean_up_tokenization_spaces=False
        )


_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # the names of tokens that stand for a byte


def _has_byte_tokens(tokenizer: Any) -> bool:
    """Whether the tokenizer decodes runs of tokens that stand for bytes, each as a whole."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and b'"ByteFallback"' in decoder.__getstate__()


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """The tokens that decoding leaves out: those with a role, and those that are special among the added ones."""
    added = (token for token, one in tokenizer.added_tokens_decoder.items() if one.special)
    return frozenset((*added, *tokenizer.all_special_ids))


_FIRST_MARK = 0xF0000  # the first character of a plane that no text uses
_LONGEST_MARKED = 1000  # characters of a stop string that names special tokens; a longer one is text


def _marks(tokenizer: Any, stop: Sequence[str]) -> dict[int, str]:
    """A character for each special token that stop strings name: it has no text, and ends an answer all the same."""
    if not stop:
        return {}
    known = {token: _content(tokenizer, token) for token in sorted(special_tokens(tokenizer))}
    short = [one for one in stop if len(one) <= _LONGEST_MARKED]
    named = [token for token, text in known.items() if text and any(text in one for one in short)]
    return {token: chr(_FIRST_MARK + number) for number, token in enumerate(named)}


def _marked(stop: str, tokenizer: Any, marks: Mapping[int, str]) -> str:
    """A stop string with the marks in place of its special tokens, the longest first."""
    for token in sorted(marks, key=lambda token: -len(_content(tokenizer, token))):
        stop = stop.replace(_content(tokenizer, token), marks[token])
    return stop


def _content(tokenizer: Any, token: int) -> str:
    return tokenizer.convert_ids_to_tokens(token)


# what cleaning up may still change, once more text is there: " n't", " 've", and " n ' t", which becomes the first;
# read from the end of the text, where a run of it takes one pass
_UNSETTLED = re.compile(r"(?:(?:'n|n|[vr]'|')? )+")


def _cleaning(tokenizer: Any) -> Callable[[str], str] | None:
    """How the tokenizer cleans up spaces in what it decodes, if it does."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return None
    kind = type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__
    if kind == "BPE" and not getattr(
        tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False
    ):
        return None  # transformers does not, either
    return tokenizer.clean_up_tokenization


def _stable_length(text: str) -> int:
    """The length of the text that cleaning up leaves unchanged, whatever follows."""
    unsettled = _UNSETTLED.match(text[::-1])
    return len(text) - (0 if unsettled is None else unsettled.end())


def decoded(tokenizer: Any, ids: Sequence[int], ends: Set[int], stop: Sequence[str] = ()) -> Decoder:
    """An answer up to its first end token or stop string, decoded."""
    decoder = Decoder(tokenizer, stop)
    for token in ids:
        decoder.add(token, token in ends)
        if decoder.stopped or token in ends:
            break
    decoder.rest()
    return decoder


class PieceStreamer(BaseStreamer):
    """Turns the tokens of each step of `generate` into pieces, handed over as they come."""

    def __init__(self, decoders: Sequence[Decoder], ends: Set[int], emit: Callable[[Piece], None]):
        self._decoders, self._ends, self._emit = decoders, ends, emit
        self._ended = [False] * len(decoders)
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # transformers hands over the prompt first
            self._prompt_seen = True
            return
        for row, token in enumerate(value.reshape(-1).tolist()):
            if self._ended[row]:
                continue
            text = self._decoders[row].add(token, token in self._ends)
            self._ended[row] = token in self._ends or self._decoders[row].stopped
            if text or self._ended[row]:
                self._emit(Piece(row, text, self._ended[row]))

    def end(self) -> None:
        for row, ended in enumerate(self._ended):
            if not ended:
                self._ended[row] = True
                self._emit(Piece(row, self._decoders[row].rest(), True))
