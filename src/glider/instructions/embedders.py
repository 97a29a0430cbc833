"""From text to instruction embedding. A pool names its embedder, and only that one may embed queries for it."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from glider.config import EMBEDDED_EMBEDDER
from glider.errors import EmbedderError, MissingDependency, first_line
from glider.experts.card import EmbedderIdentity
from glider.experts.token_ids import TokenizerFault, tokenizer_faults
from glider.files.json_text import read_json
from glider.instructions.encoder import encoder_of
from glider.registry import Registry
from glider.shapes import Float, Tensor

ENDPOINT_VARIABLE = "GLIDER_EMBEDDING_URL"
_PROBE_SENTENCE = "Decide which expert answers this question."
_PROBE_VALUES = 8
_MOST_FOLDERS = 64  # of a model that are looked at: a card may name any directory, the root of the file system too

Encode = Callable[[list[str]], Tensor]  # texts -> (B, G)


@dataclass(frozen=True)
class Measure:
    """How long texts are in an embedder's own tokens. What is beyond `longest` is no part of the vector."""

    tokenizer: Any
    longest: int | None

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        with _telling_of_tokenizer("the embedder"):
            rows = self.tokenizer([text.strip() for text in texts], truncation=False, padding=False)["input_ids"]
        return [len(row) for row in rows]


class Embedder:
    """Turns texts into vectors of unit length, each text with a fixed prefix."""

    def __init__(self, name: str, encode: Encode, prefix: str = "", measure: Measure | None = None):
        self.name, self.prefix, self.measure, self._encode = name, prefix, measure, encode
        probe = self.embed([_PROBE_SENTENCE])[0]
        self.identity = EmbedderIdentity(
            embedder=name,
            prefix=prefix,
            dimension=probe.numel(),
            probe=tuple(round(value, 4) for value in probe[:_PROBE_VALUES].tolist()),
        )

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "B G"]:
        """Embed texts (each with the prefix before it), float32, unit length."""
        with _telling_of_tokenizer(self.name):
            return self._encode([self.prefix + text for text in texts]).float().cpu()


@contextmanager
def _telling_of_tokenizer(name: str) -> Iterator[None]:
    try:
        with tokenizer_faults():
            yield
    except TokenizerFault as fault:
        remedy = "Leave that text out, or give the model's own tokenizer."
        raise EmbedderError(f"texts that the tokenizer of {name} takes", str(fault)[:300], remedy) from fault


embedders: "Registry[Embedder]" = Registry(
    "embedder",
    "glider.embedders",
    ("glider.instructions.embedders", "glider.instructions.openai_embedder"),
    EmbedderError,
)
embedder = embedders.register


def load_embedder(name: str = EMBEDDED_EMBEDDER, prefix: str = "") -> Embedder:
    """Load an embedder: a sentence-transformers model by name or path, or `KIND:NAME` for another registered kind.

    `all-MiniLM-L6-v2` is read from its wheel, offline. `openai:MODEL` asks the endpoint at `$GLIDER_EMBEDDING_URL`.
    Raises `EmbedderError` where there is no such model, `EndpointError` where an endpoint fails.
    """
    return _load(name, prefix, os.environ.get(ENDPOINT_VARIABLE))


def load_for(identity: EmbedderIdentity) -> Embedder:
    """Load the embedder a pool names; raises `EmbedderError` if the installed one makes other vectors."""
    embedder = load_embedder(identity.embedder, identity.prefix)
    if not identity.matches(embedder.identity):
        raise EmbedderError(
            f"the pool's embedder {identity.embedder} ({identity.dimension} wide, probe {identity.probe[:3]} ...)",
            f"one of that name with {embedder.identity.dimension} values, probe {embedder.identity.probe[:3]} ...",
            "Install the version the pool was made with, or describe its experts again.",
        )
    return embedder


@embedder(EMBEDDED_EMBEDDER)
def embedded(prefix: str = "") -> Embedder:
    """all-MiniLM-L6-v2 from its wheel."""
    from glider.demo.base import embedder_directory

    encode, measure = _sentence_transformer(EMBEDDED_EMBEDDER, str(embedder_directory()))
    return Embedder(EMBEDDED_EMBEDDER, encode, prefix, measure)


@embedder("sentence-transformers")
def sentence_transformers(argument: str, prefix: str = "") -> Embedder:
    """A sentence-transformers model by hub id or path; models such as nomic's want a task prefix."""
    encode, measure = _sentence_transformer(argument, argument)
    return Embedder(argument, encode, prefix, measure)


@lru_cache(maxsize=4)
def _load(name: str, prefix: str, address: str | None) -> Embedder:
    kinds = {entry.name for entry in embedders}
    if name.partition(":")[0] not in kinds:
        name = f"sentence-transformers:{name}"
    return embedders.create(name, prefix=prefix)


def _sentence_transformer(name: str, source: str) -> tuple[Encode, Measure | None]:
    from transformers import PreTrainedTokenizerBase

    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        purpose = f"embed texts by {name}"
        raise MissingDependency("sentence-transformers", purpose, "pip install 'glider-moe[embed]'") from None
    from glider.inference.base_model import require_plain_files
    from glider.inference.text_growth import require_bounded_files, require_bounded_tokenizer

    for folder, _, _ in islice(os.walk(source), _MOST_FOLDERS):
        require_plain_files(Path(folder))
    if Path(source).is_dir():
        require_bounded_files(source)
    _require_known_modules(source)
    try:
        with tokenizer_faults():
            model = SentenceTransformer(source, device="cpu")
            tokenizer = model.tokenizer  # older versions make a model of no modules, and stumble here
    except Exception as fault:  # of files of another form, anything
        named = "" if isinstance(fault, OSError | ValueError) else f"{type(fault).__name__}: "
        raise EmbedderError(
            f"a sentence-transformers model {name}",
            named + first_line(fault)[:300],
            f"Give a hub id, a local path, or {EMBEDDED_EMBEDDER}.",
        ) from fault

    require_bounded_tokenizer(tokenizer)
    known = isinstance(tokenizer, PreTrainedTokenizerBase)
    measure = Measure(tokenizer, model.max_seq_length) if known else None
    if (encoder := encoder_of(model)) is not None:
        return encoder, measure

    def encode(texts: list[str]) -> torch.Tensor:
        return model.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)

    return encode, measure


def _require_known_modules(source: str) -> None:
    """Raise `EmbedderError` for modules that are not of sentence-transformers: before its version 6 it imports whatever
    class a model names, from the model's own directory too. A card names an embedder, so it may be a stranger's."""
    from transformers.utils.hub import cached_file

    try:
        place = cached_file(source, "modules.json", _raise_exceptions_for_missing_entries=False)
        modules = [] if place is None else read_json(Path(place))
    except OSError:
        return  # no such model, as whoever loads it says
    except (ValueError, RecursionError) as fault:
        raise EmbedderError(f"modules.json of {source}", str(fault)[:200], "Get the model anew.") from fault
    modules = modules if isinstance(modules, list) else [modules]
    kinds = [module.get("type") if isinstance(module, dict) else module for module in modules]
    strange = [kind for kind in kinds if not isinstance(kind, str) or not kind.startswith("sentence_transformers.")]
    if strange:
        expected = f"modules of sentence-transformers alone in {source}"
        raise EmbedderError(expected, repr(strange[0])[:80], "Give another embedder: no foreign code runs.")
