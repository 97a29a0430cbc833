"""The published instruction embeddings of the queries, in place of the embedder that made them.

The evaluation hands a task's description to the pool's embedder, nomic-embed-text-v1.5. Here the description is a key
(task, file and its hash), and the embedder of that name looks the published vector up: no model is loaded, and another
file is another cell.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from glider.contribute.published_format import NOMIC, read_embeddings
from glider.errors import EmbedderError
from glider.files.disk import sha256
from glider.instructions.embedders import Embedder, embedder
from glider.shapes import Float, Tensor

_known: dict[str, Tensor] = {}  # key -> (G,), unit length; a key names its file's content, so nothing is ever replaced


def read_queries(path: Path, tasks: Collection[str]) -> dict[str, str]:
    """Learn the vectors of a published file; returns the key of each task.

    Of several wordings (BIG-bench) the first counts, which is what the published code's cut of each tensor leaves.
    Raises `EmbedderError` for a task that the file lacks.
    """
    vectors = read_embeddings(path)
    if lacking := sorted(set(tasks) - vectors.keys()):
        wanted = f"instruction embeddings of every task in {path}"
        raise EmbedderError(wanted, f"none of {', '.join(lacking)}", "Give the published file of this set.")
    digest = sha256(path)[:16]
    keys = {task: f"published query of {task}, {path.name} {digest}" for task in tasks}
    for task, key in keys.items():
        _known[key] = torch.nn.functional.normalize(vectors[task][0], dim=0)
    return keys


def vectors_of(keys: Collection[str]) -> dict[str, Tensor]:
    """The vectors of keys from `read_queries`, for another process to `learn`."""
    return {key: _known[key] for key in keys}


def learn(vectors: Mapping[str, Tensor]) -> None:
    """Know these vectors, which another process read."""
    _known.update(vectors)


class PublishedQueries(Embedder):
    """An embedder that knows the published queries alone."""

    def __init__(self, prefix: str = ""):
        self.name, self.prefix, self.identity = NOMIC.embedder, prefix, NOMIC

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "B G"]:
        """The vectors of keys from `read_queries`; raises `EmbedderError` for any other text."""
        if unknown := [text for text in texts if text not in _known]:
            got = repr(unknown[0][:60])
            raise EmbedderError("a query that the published embeddings have", got, "Read their file first.")
        return torch.stack([_known[text] for text in texts])


embedder(NOMIC.embedder)(PublishedQueries)
