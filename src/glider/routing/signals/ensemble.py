"""Words and meaning: the signal `examples` with the embedding of the query's text beside it."""

from dataclasses import dataclass

import torch

from glider.experts.pool import Pool
from glider.routing.base import Asked, Need
from glider.routing.scores import cosine
from glider.routing.signals.base import absent, lead, profiles, signal
from glider.routing.signals.examples import THRESHOLD, Likelihoods
from glider.shapes import Float, Tensor

MEANING = 0.25  # weight of the embedding beside the words
USUAL_LEAD = 0.31  # the median lead of a query's own expert in cosine (all-MiniLM-L6-v2)


@dataclass(frozen=True)
class Both:
    """(words + 0.25 meaning) / 1.25, each about 1 for a query's own expert."""

    words: Likelihoods
    means: Float[Tensor, "E G"]  # mean embedding of the expert's training inputs, unit length
    needs: frozenset[Need] = frozenset({"grams", "inputs"})

    def of(self, asked: Asked, without: int | None = None) -> Float[Tensor, "B E"]:
        assert asked.inputs is not None
        cosines = cosine(asked.inputs, self.means)
        meaning = lead(cosines, absent(cosines, without)) / USUAL_LEAD
        return (self.words.of(asked, without) + MEANING * meaning) / (1 + MEANING)


@signal("ensemble")
@dataclass(frozen=True)
class Ensemble:
    """global_e = (examples_e + 0.25 lead of cosine(mean training input of e, query)) / 1.25: better on new wordings.

    Needs the pool's embedder for each query, but no LLM.
    """

    def prepare(self, pool: Pool, router: str) -> Both:
        found = profiles(pool, router, inputs=True)
        means = torch.stack([profile.inputs.float() for profile in found if profile.inputs is not None])
        return Both(Likelihoods.of_profiles(found), torch.nn.functional.normalize(means, dim=-1))

    def threshold(self, pool: Pool) -> float | None:
        return THRESHOLD
