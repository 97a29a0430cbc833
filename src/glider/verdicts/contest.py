"""The experts and the base in one contest: whose requests do a query's words look like?"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch

from glider.experts.profile import Profile
from glider.routing.base import QueryFeatures
from glider.routing.signals.examples import SMOOTHING, USUAL_LEAD, Likelihoods, norm
from glider.shapes import Bool, Float, Int, Tensor
from glider.verdicts.background import Background


@dataclass(frozen=True)
class Contest:
    """Likelihoods of a query's n-grams under each expert's training inputs and under everyday requests, as in the
    signal `examples`. An expert without a profile, or with one of no words, cannot win: its margin is minus
    infinity."""

    index: Likelihoods  # of the experts that have profiles, in order, and the background last
    columns: Int[Tensor, " P"]  # of those experts in the pool
    experts: int
    background: Background

    @classmethod
    def of(cls, profiles: Sequence[Profile | None], background: Background) -> "Contest":
        """Make the index. Linear in the n-grams of all."""
        known = {i: profile.known for i, profile in enumerate(profiles) if profile is not None and profile.has_words}
        columns = torch.tensor(list(known), dtype=torch.long)
        index = Likelihoods.of_counts([*known.values(), (background.grams, background.total.long())])
        return cls(index, columns, len(profiles), background)

    def margins(self, features: QueryFeatures) -> Float[Tensor, "B E"]:
        """How much likelier each query is among each expert's inputs than among everyday requests.

        In units of a usual lead: about 1 to 2 for an expert's own queries, near 0 for everyday ones.
        """
        assert features.grams is not None
        return torch.stack(
            [
                torch.stack([self._margins(self.index.of_text(text)) for text in query]).mean(dim=0)
                for query in features.grams
            ]
        )

    def resemblance(self, features: QueryFeatures) -> Bool[Tensor, " B"]:
        """Whether any expert's inputs hold an n-gram of the query: margins say nothing of one that shares none."""
        assert features.grams is not None
        return torch.tensor([any(map(self._resembles, query)) for query in features.grams], dtype=torch.bool)

    def strangers(self, fold: int) -> Float[Tensor, "Q E"]:
        """The margins of the background's requests of one fold, by a background that has not seen their kind."""
        gains = self._gains(fold)
        margins = [torch.zeros(0, self.experts)]
        for text in self.background.of_fold(fold):
            scores, place = self.index.of_text(text), self.index.places(text)
            weights = self.index.weights(self.index.starts[place + 1] - self.index.starts[place])
            unseen = ((weights * gains[place]).sum() + weights.sum() * self._floor(fold)) / norm(weights)
            margins.append(self._margins(torch.cat([scores[:-1], unseen[None]]))[None])
        return torch.cat(margins)

    def _resembles(self, text: Int[Tensor, " N"]) -> bool:
        first = self.index.experts[self.index.starts[self.index.places(text)]]  # of an n-gram's entries; ascending
        return bool((first < len(self.columns)).any())

    def _margins(self, scores: Float[Tensor, " P"]) -> Float[Tensor, " E"]:
        margins = torch.full((self.experts,), -torch.inf)
        return margins.index_copy(0, self.columns, (scores[:-1] - scores[-1]) / USUAL_LEAD)

    def _gains(self, fold: int) -> Float[Tensor, " V"]:
        """What the background without a fold adds at each n-gram of the index."""
        counts = self.background.without(fold).float()
        place = torch.searchsorted(self.index.grams, self.background.grams)
        return torch.zeros(len(self.index.grams)).index_copy(0, place, ((counts + SMOOTHING) / SMOOTHING).log())

    def _floor(self, fold: int) -> float:
        total = self.background.without(fold).sum().item()
        return log(SMOOTHING) - log(total + SMOOTHING * len(self.index.grams))
