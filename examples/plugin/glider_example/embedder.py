"""An embedder without a model: hashed words, each with its sign, at unit length."""

import hashlib
import re

import torch

from glider.instructions.embedders import Embedder, embedder

WIDTH = 256


@embedder("hashed-words")
def hashed_words(prefix: str = "") -> Embedder:
    """What `--embedder hashed-words` names. A pool stores the name, and the vector of a fixed sentence beside it."""
    return Embedder("hashed-words", encode, prefix)


def encode(texts: list[str]) -> torch.Tensor:
    """(B, WIDTH)."""
    vectors = torch.zeros(len(texts), WIDTH)
    for row, text in zip(vectors, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()):
            digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
            row[int.from_bytes(digest[:4], "big") % WIDTH] += 1 if digest[4] % 2 else -1
    return torch.nn.functional.normalize(vectors, dim=-1)
