"""The features of a query's text for the global signals: hashed word n-grams, and the part that is embedded.

Of a long text only the beginning and the end count, where a prompt usually states its task.
"""

import re
import zlib
from itertools import islice

import torch

from glider.shapes import Int, Tensor

ORDER = 3  # longest n-gram, in words
EDGE = 128  # words kept at each end of a text
EDGE_CHARACTERS = 160  # embedded at each end of a text
_WINDOW = 1 << 13  # characters in which the last words are looked for at first
_WORD = re.compile(r"\w+|[^\w\s]|\n")


def ngrams(text: str) -> Int[Tensor, " N"]:
    """Sorted, distinct int64 hashes of the 1- to 3-grams of a text's lower-cased words and signs; 0 is never one."""
    words = [word.encode() for word in _words_at_edges(text.lower())]
    hashes = set()
    for place in range(len(words)):
        value = zlib.crc32(words[place])
        hashes.add(value or 1)
        for word in words[place + 1 : place + ORDER]:  # the hash of both with a space between, without writing that
            value = zlib.crc32(word, zlib.crc32(b" ", value))
            hashes.add(value or 1)
    return torch.tensor(sorted(hashes), dtype=torch.int64)


def _words_at_edges(text: str) -> list[str]:
    """The words of a text; of a long one those at both ends, with as little memory as they take."""
    first = [match[0] for match in islice(_WORD.finditer(text), 2 * EDGE + 1)]
    if len(first) <= 2 * EDGE:
        return first
    last: list[str] = []
    width = _WINDOW
    while len(last) <= EDGE:  # the first word of a window may be the end of one
        last, width = _WORD.findall(text[max(0, len(text) - width) :]), 2 * width
    return [*first[:EDGE], *last[-EDGE:]]


def edges(text: str) -> str:
    """The beginning and the end of a long text: embedders look at some 200 words only."""
    short = len(text) <= 2 * EDGE_CHARACTERS
    return text if short else f"{text[:EDGE_CHARACTERS]} ... {text[-EDGE_CHARACTERS:]}"
