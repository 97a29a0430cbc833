"""A global signal without LLM and embedder: which expert's training inputs a query's words look like."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.experts.profile import Profile
from glider.routing.base import Need, QueryFeatures
from glider.routing.signals.base import absent, lead, profiles, signal
from glider.shapes import Float, Int, Tensor

SMOOTHING = 0.01
USUAL_LEAD = 32.0  # the median lead of a query's own expert, nearly the same in pools of 2 and of 36
THRESHOLD = 0.35
_MANY = 64  # experts from which on n-grams that many know have rows of their own


@dataclass(frozen=True)
class Likelihoods:
    """Naive Bayes over hashed word n-grams: an index from n-gram to the experts that know it, with their weights.

    An n-gram that few experts know counts more (inverse expert frequency); one that none knows counts nothing.
    """

    count: int  # experts
    grams: Int[Tensor, " U"]  # sorted
    starts: Int[Tensor, " V"]  # U + 1: where each n-gram's entries begin
    experts: Int[Tensor, " N"]  # of each entry
    gains: Float[Tensor, " N"]  # log of what knowing the n-gram adds to its likelihood
    floors: Float[Tensor, " E"]  # log-likelihood of an n-gram that the expert does not know
    needs: frozenset[Need] = frozenset({"grams"})

    @classmethod
    def of_profiles(cls, experts: Sequence[Profile]) -> "Likelihoods":
        """Build the index; linear in the n-grams of all experts."""
        return cls.of_counts([profile.known for profile in experts])

    @classmethod
    def of_counts(cls, known: Sequence[tuple[Tensor, Tensor]]) -> "Likelihoods":
        """The same from the sorted n-grams of each and the number of inputs that hold them."""
        grams = torch.cat([grams for grams, _ in known])
        counts = torch.cat([counts for _, counts in known]).float()
        owner = torch.repeat_interleave(torch.arange(len(known)), torch.tensor([len(grams) for grams, _ in known]))
        order = grams.argsort(stable=True)
        distinct, sizes = grams[order].unique_consecutive(return_counts=True)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        totals = torch.tensor([counts.sum().item() for _, counts in known])
        floors = log(SMOOTHING) - (totals + SMOOTHING * len(distinct)).log()
        gains = ((counts + SMOOTHING) / SMOOTHING).log()
        return cls(len(known), distinct, starts, owner[order], gains[order], floors)

    def of(self, features: QueryFeatures, without: int | None = None) -> Float[Tensor, "B E"]:
        assert features.grams is not None
        scores = torch.stack(
            [torch.stack([self.of_text(text, without) for text in query]).mean(dim=0) for query in features.grams]
        )  # (B, E)
        return lead(scores, absent(scores, without)) / USUAL_LEAD

    def places(self, text: Int[Tensor, " N"]) -> Int[Tensor, " M"]:
        """The places in the index of those n-grams of a text that any expert knows."""
        place = torch.searchsorted(self.grams, text).clamp(max=len(self.grams) - 1)
        return place[self.grams[place] == text]

    def weights(self, sizes: Int[Tensor, " M"], present: int | None = None) -> Float[Tensor, " M"]:
        """The weight of n-grams that this many of the present experts know (default: of all)."""
        present = self.count if present is None else present
        return torch.where(sizes > 0, ((1 + present) / (1 + sizes)).log() + 1, 0.0)

    def of_text(self, text: Int[Tensor, " N"], without: int | None = None) -> Float[Tensor, " E"]:
        """Weighed log-likelihood of one text under every expert, over the norm of the weights."""
        place = self.places(text)
        if without is None and self.count >= _MANY:
            return self._of_places(place)
        starts = self.starts[place]
        sizes = self.starts[place + 1] - starts
        entry = entries(starts, sizes)
        experts = self.experts[entry]
        if without is None:
            weights, gains = self.weights(sizes), self._weighed[entry]
        else:
            others = experts != without
            gram = torch.repeat_interleave(torch.arange(len(place)), sizes)[others]  # of each entry
            entry, experts = entry[others], experts[others]
            weights = self.weights(torch.bincount(gram, minlength=len(place)), self.count - 1)
            gains = weights[gram] * self.gains[entry]
        sums = torch.zeros(self.count).scatter_add_(0, experts, gains)
        return (sums + weights.sum() * self.floors) / norm(weights)

    def _of_places(self, place: Int[Tensor, " M"]) -> Float[Tensor, " E"]:
        """`of_text` in a large pool: one row of gains for an n-gram that many know, entries for the others."""
        starts = self.starts[place]
        sizes = self.starts[place + 1] - starts
        row, table = self._common
        common = row[place] >= 0
        entry = entries(starts[~common], sizes[~common])
        sums = table[row[place[common]]].sum(dim=0)
        sums.scatter_add_(0, self.experts[entry], self._weighed[entry])
        weights = self.weights(sizes)
        return (sums + weights.sum() * self.floors) / norm(weights)

    @cached_property
    def _weighed(self) -> Float[Tensor, " N"]:
        """The gain of each entry, by the weight that its n-gram has among all experts."""
        sizes = self.starts[1:] - self.starts[:-1]
        return self.gains * torch.repeat_interleave(self.weights(sizes), sizes)

    @cached_property
    def _common(self) -> tuple[Int[Tensor, " U"], Float[Tensor, "C E"]]:
        """Rows of the weighed gains of n-grams that an eighth of all experts know, and each n-gram's row (or -1)."""
        sizes = self.starts[1:] - self.starts[:-1]
        common = (sizes * 8 >= self.count).nonzero()[:, 0]
        row = torch.full((len(self.grams),), -1)
        row[common] = torch.arange(len(common))
        entry = entries(self.starts[common], sizes[common])
        table = torch.zeros(len(common), self.count)
        table[torch.repeat_interleave(row[common], sizes[common]), self.experts[entry]] = self._weighed[entry]
        return row, table


def entries(starts: Int[Tensor, " M"], sizes: Int[Tensor, " M"]) -> Int[Tensor, " N"]:
    """The numbers of ranges, one range after the other."""
    entry = torch.repeat_interleave(starts - (sizes.cumsum(0) - sizes), sizes)
    return entry + torch.arange(len(entry))


def norm(weights: Float[Tensor, " M"]) -> Tensor:
    """The divisor of a sum over n-grams, so that long texts do not count for more."""
    return (weights.square().sum() + 1e-9).sqrt()


@signal("examples")
@dataclass(frozen=True)
class Examples:
    """global_e = lead of the query's log-likelihood under e's word n-grams (64 training inputs) over the others' mean.

    Naive Bayes with inverse expert frequencies; a query may bring examples of its task, whose scores are averaged with
    its own. No LLM, no embedder, well under a millisecond.
    """

    def prepare(self, pool: Pool) -> Likelihoods:
        return Likelihoods.of_profiles(profiles_with_words(pool))

    def threshold(self, pool: Pool) -> float | None:
        return THRESHOLD


def profiles_with_words(pool: Pool) -> list[Profile]:
    """The experts' profiles; raises `RouterError` naming those that have none, or one of no n-grams."""
    known = list(profiles(pool))
    empty = [expert.name for expert, profile in zip(pool, known, strict=True) if not profile.has_words]
    if empty:
        raise RouterError(
            "n-grams of training inputs in the profile of every expert",
            f"none in {', '.join(empty[:8])}",
            "Make the profiles again with `glider expert profile`.",
        )
    return known
