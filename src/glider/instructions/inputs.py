"""The features of a query's text for the global signals: hashed word n-grams, and the part that is embedded.

Of a long text only the beginning and the end count, where a prompt usually states its task.
"""

import re
import zlib

import torch

from glider.shapes import Int, Tensor

ORDER = 3  # longest n-gram, in words
EDGE = 128  # words kept at each end of a text
EDGE_CHARACTERS = 160  # embedded at each end of a text
_WORD = re.compile(r"\w+|[^\w\s]|\n")


def ngrams(text: str) -> Int[Tensor, " N"]:
    """Sorted, distinct int64 hashes of the 1- to 3-grams of a text's lower-cased words and signs; 0 is never one."""
    words = _WORD.findall(text.lower())
    if len(words) > 2 * EDGE:
        words = [*words[:EDGE], *words[-EDGE:]]
    grams = {" ".join(words[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(words) - n + 1)}
    return torch.tensor(sorted({zlib.crc32(gram.encode()) or 1 for gram in grams}), dtype=torch.int64)


def edges(text: str) -> str:
    """The beginning and the end of a long text: embedders look at some 200 words only."""
    short = len(text) <= 2 * EDGE_CHARACTERS
    return text if short else f"{text[:EDGE_CHARACTERS]} ... {text[-EDGE_CHARACTERS:]}"
