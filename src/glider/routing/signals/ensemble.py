"""Words and meaning: the signal `examples` with embeddings of the query's text and description beside it."""

from dataclasses import dataclass

import torch

from glider.experts.pool import Pool
from glider.routing.base import Need, QueryFeatures
from glider.routing.scores import cosine
from glider.routing.signals.base import absent, lead, profiles, signal
from glider.routing.signals.examples import THRESHOLD, Likelihoods, profiles_with_words
from glider.routing.signals.instruction import unit_instructions
from glider.shapes import Float, Tensor

MEANING = 0.25  # weight of each embedding beside the words
USUAL_LEAD = 0.31  # the median lead of a query's own expert in cosine (all-MiniLM-L6-v2)


@dataclass(frozen=True)
class Mixture:
    """(words + 0.25 inputs + 0.25 descriptions) / 1.5, each part about 1 for a query's own expert."""

    words: Likelihoods
    inputs: Float[Tensor, "E G"]  # mean embedding of the expert's training inputs, unit length
    descriptions: Float[Tensor, "E G"] | None = None  # of its task, unit length; None where an expert has none

    @property
    def needs(self) -> frozenset[Need]:
        words: frozenset[Need] = frozenset({"grams", "inputs"})
        described: frozenset[Need] = frozenset({"instructions"})
        return words if self.descriptions is None else words | described

    def of(self, features: QueryFeatures, without: int | None = None) -> Float[Tensor, "B E"]:
        assert features.inputs is not None
        scores, weight = self.words.of(features, without), 1.0
        pairs = [(features.inputs, self.inputs)]
        if self.descriptions is not None:
            assert features.instructions is not None
            pairs.append((features.instructions, self.descriptions))
        for query, experts in pairs:
            cosines = cosine(query, experts)
            scores = scores + MEANING / USUAL_LEAD * lead(cosines, absent(cosines, without))
            weight += MEANING
        return scores / weight


@signal("ensemble")
@dataclass(frozen=True)
class Ensemble:
    """global_e = (examples_e + 0.25 lead of cosine(mean input of e, query) + 0.25 that of its description) / 1.5.

    Better than words alone on wordings that no expert has seen, and with a description of the query where there is one.
    Needs the pool's embedder for each query, but no LLM. Experts without descriptions leave the last part out.
    """

    def prepare(self, pool: Pool) -> Mixture:
        profiles_with_words(pool)
        known = profiles(pool, inputs=True)
        inputs = torch.stack([profile.inputs.float() for profile in known if profile.inputs is not None])
        described = all(expert.instruction is not None for expert in pool)
        descriptions = unit_instructions(pool) if described else None
        words = Likelihoods.of_profiles(known)
        return Mixture(words, torch.nn.functional.normalize(inputs, dim=-1), descriptions)

    def threshold(self, pool: Pool) -> float | None:
        return THRESHOLD
