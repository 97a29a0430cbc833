"""The fourth step of the protocol: what an expert keeps of its training inputs, for the global signals without LLM."""

import random
from collections.abc import Sequence

import torch

from glider.data.rows import Row
from glider.errors import ConfigError, DataError
from glider.experts.profile import HELD_BACK, ROWS, Profile
from glider.inference.base_model import BaseModel
from glider.inference.prompt_states import prompt_states
from glider.instructions.embedders import Embedder
from glider.instructions.inputs import edges, ngrams
from glider.shapes import Float, Tensor

_AT_ONCE = 256  # stored texts that are embedded together


def profile_of(
    training: Sequence[Row],
    held_back: Sequence[Row],
    embedder: Embedder | None,
    base: BaseModel,
    seed: int,
    stored: int = 0,
) -> Profile:
    """Count up to 64 training inputs and keep up to 24 held-back ones, drawn by seed; read by the bare base model, and
    embedded where there is an embedder. The embeddings of `stored` training inputs are kept one by one.

    Raises `DataError` for fewer training rows than are to be stored, `ConfigError` without an embedder for them.
    """
    draw = random.Random(seed)
    counted = [row.input for row in draw.sample(training, min(ROWS, len(training)))]
    reserved = [row.input for row in draw.sample(held_back, min(HELD_BACK, len(held_back)))]
    inputs, reserved_inputs = (
        embedder.embed(list(map(edges, t))) if embedder and t else None for t in (counted, reserved)
    )
    states, reserved_states = (prompt_states(base, list(map(edges, t))) if t else None for t in (counted, reserved))
    single = _stored(training, embedder, seed, stored) if stored else None
    words, reserved_words = list(map(ngrams, counted)), list(map(ngrams, reserved))
    return Profile.of(words, reserved_words, inputs, reserved_inputs, states, reserved_states, single)


def _stored(training: Sequence[Row], embedder: Embedder | None, seed: int, count: int) -> Float[Tensor, "N G"]:
    """Embeddings of so many training inputs, drawn by the seed."""
    if embedder is None:
        remedy = "Describe the expert first (`glider expert describe`), or leave --stored out."
        raise ConfigError(f"an embedder for {count} stored inputs", "an expert without one", remedy)
    if len(training) < count:
        raise DataError(f"{count} training rows to store", str(len(training)), "Give more rows, or a lower --stored.")
    texts = [edges(row.input) for row in random.Random(f"stored {seed}").sample(training, count)]
    return torch.cat([embedder.embed(texts[i : i + _AT_ONCE]) for i in range(0, count, _AT_ONCE)])
