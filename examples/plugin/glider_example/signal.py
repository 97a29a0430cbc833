"""A global signal: the share of a query's word n-grams that an expert met in its training inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from glider.experts.pool import Pool
from glider.routing.base import Need, QueryFeatures
from glider.routing.signals.base import absent, profiles, signal


@dataclass(frozen=True)
class Shares:
    """What the signal knows of a pool: the sorted n-grams of each expert."""

    known: tuple[Tensor, ...]
    needs: frozenset[Need] = frozenset({"grams"})  # the parts of a query that are read

    def of(self, features: QueryFeatures, without: int | None = None) -> Tensor:
        """(B, E), about 1 for a query's own expert; minus infinity for the expert that is left out."""
        assert features.grams is not None
        texts = [torch.cat(list(query)) for query in features.grams]
        shares = [
            [torch.isin(text, known).float().mean() if len(text) else 0.0 for known in self.known] for text in texts
        ]
        scores = torch.tensor(shares)
        return scores.masked_fill(absent(scores, without), -torch.inf)


@signal("known-words")
@dataclass(frozen=True)
class KnownWords:
    """global_e = share of the query's n-grams among those of e's training inputs."""

    def prepare(self, pool: Pool) -> Shares:
        """Once for a pool; experts without a profile are named in the error."""
        return Shares(tuple(profile.known[0] for profile in profiles(pool)))

    def threshold(self, pool: Pool) -> float | None:
        """p of a pool that is not calibrated."""
        return 0.3
