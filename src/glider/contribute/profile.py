"""The fourth step of the protocol: what an expert keeps of its training inputs, for the global signals without LLM."""

import random
from collections.abc import Sequence

from glider.data.rows import Row
from glider.experts.profile import HELD_BACK, ROWS, Profile
from glider.inference.base_model import BaseModel
from glider.inference.prompt_states import prompt_states
from glider.instructions.embedders import Embedder
from glider.instructions.inputs import edges, ngrams


def profile_of(
    training: Sequence[Row], held_back: Sequence[Row], embedder: Embedder | None, base: BaseModel, seed: int
) -> Profile:
    """Count up to 64 training inputs and keep up to 24 held-back ones, drawn by seed; read by the bare base model, and
    embedded where there is an embedder."""
    draw = random.Random(seed)
    counted = [row.input for row in draw.sample(training, min(ROWS, len(training)))]
    reserved = [row.input for row in draw.sample(held_back, min(HELD_BACK, len(held_back)))]
    inputs, kept_inputs = (embedder.embed(list(map(edges, t))) if embedder and t else None for t in (counted, reserved))
    states, kept_states = (prompt_states(base, list(map(edges, t))) if t else None for t in (counted, reserved))
    return Profile.of(list(map(ngrams, counted)), list(map(ngrams, reserved)), inputs, kept_inputs, states, kept_states)
