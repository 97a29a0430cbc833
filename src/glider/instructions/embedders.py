"""Text -> instruction embedding. A pool names its embedder, and only that one may embed a query for it."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from glider.config import EMBEDDED_EMBEDDER
from glider.errors import EmbedderError
from glider.experts.card import EmbedderIdentity
from glider.shapes import Float, Tensor

_PROBE_SENTENCE = "Decide which expert answers this question."
_PROBE_VALUES = 8


class Embedder:
    """A sentence-transformers model with a fixed prefix; its vectors have unit length."""

    def __init__(self, name: str, model: Any, prefix: str = ""):
        self.name, self.prefix, self._model = name, prefix, model
        probe = self.embed([_PROBE_SENTENCE])[0]
        self.identity = EmbedderIdentity(
            embedder=name,
            prefix=prefix,
            dimension=probe.numel(),
            probe=tuple(round(value, 4) for value in probe[:_PROBE_VALUES].tolist()),
        )

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "B G"]:
        """Embed texts (each with the prefix before it), float32, unit length."""
        prefixed = [self.prefix + text for text in texts]
        vectors = self._model.encode(
            prefixed, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors.float().cpu()


def load_embedder(name: str = EMBEDDED_EMBEDDER, prefix: str = "") -> Embedder:
    """Load a sentence-transformers model by name or path; `all-MiniLM-L6-v2` is read from its wheel, offline.

    Raises `EmbedderError` where there is no such model.
    """
    return _load(name, prefix)


def load_for(identity: EmbedderIdentity) -> Embedder:
    """Load the embedder a pool names; raises `EmbedderError` if what is installed makes other vectors."""
    embedder = load_embedder(identity.embedder, identity.prefix)
    if not identity.matches(embedder.identity):
        raise EmbedderError(
            f"the pool's embedder {identity.embedder} ({identity.dimension} wide, probe {identity.probe[:3]} ...)",
            f"one of that name with {embedder.identity.dimension} values, probe {embedder.identity.probe[:3]} ...",
            "Install the version the pool was made with, or describe its experts again.",
        )
    return embedder


@lru_cache(maxsize=4)
def _load(name: str, prefix: str) -> Embedder:
    from sentence_transformers import SentenceTransformer

    source = name
    if name == EMBEDDED_EMBEDDER:
        from glider.demo.base import embedder_directory

        source = str(embedder_directory())
    try:
        model = SentenceTransformer(source, device="cpu")
    except (OSError, ValueError) as fault:
        raise EmbedderError(
            f"a sentence-transformers model {name}",
            str(fault).splitlines()[0],
            f"Give a hub id, a local path, or {EMBEDDED_EMBEDDER}.",
        ) from fault
    return Embedder(name, model, prefix)
