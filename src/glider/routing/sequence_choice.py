"""What routers share that decide a prompt's tokens together: scores by any local score, a decision by sequence."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from glider.routing.base import Decision, Site, SlotDecision, Support
from glider.routing.compose import Composed
from glider.routing.local_scores.base import LocalScore, local_scores
from glider.shapes import Bool, Float, Int, Tensor

WHOLE_PROMPTS = Support(packed=False, chunked=False, sequences=True)


class ByLocal(Composed):
    """A router over the local score `local`, with `local_settings`."""

    local: str
    local_settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.local_score()  # refuses bad settings now, not at the first token

    def local_score(self) -> LocalScore:
        return local_scores.create(self.local, **self.local_settings)

    def _scores(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Float[Tensor, "T E"]:
        scores = self.local_score().scores(x, site).float()
        return scores if term is None else scores + term


@dataclass(frozen=True)
class Grouped:
    """Tokens by what they are decided with: some alone, the others in groups."""

    alone: Int[Tensor, " A"]
    together: tuple[Int[Tensor, " _"], ...]

    @classmethod
    def of(cls, sequence_of: Int[Tensor, " T"]) -> "Grouped":
        """By the numbers of their sequences; one token by itself is alone, padding (-1) is nowhere."""
        real = (sequence_of >= 0).nonzero()[:, 0]
        order = real[sequence_of[real].argsort(stable=True)]
        parts = order.split(sequence_of[order].unique_consecutive(return_counts=True)[1].tolist())
        alone = [part for part in parts if len(part) == 1]
        none = order[:0]
        return cls(torch.cat([none, *alone]), tuple(part for part in parts if len(part) > 1))


class WholePrompts(ByLocal):
    """A sparse router whose weights for the tokens of a prompt are made from the scores of all of them."""

    @property
    def support(self) -> Support:
        """Where its decisions are right."""
        return WHOLE_PROMPTS

    def alone(self, scores: Float[Tensor, "N E"]) -> Float[Tensor, "N E"]:
        """The weights of tokens that stand alone."""
        raise NotImplementedError

    def together(self, scores: Float[Tensor, "N E"]) -> Float[Tensor, "N E"]:
        """The weights of the tokens of one prompt, for experts that each of them, or some of them, may use."""
        raise NotImplementedError

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        scores = self._scores(site, x, term)
        return sparse(self.alone(scores), scores)

    def route_sequences(
        self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None, sequence_of: Int[Tensor, " T"]
    ) -> Decision | SlotDecision:
        scores, grouped = self._scores(site, x, term), Grouped.of(sequence_of)
        weights = torch.zeros_like(scores)
        if len(grouped.alone):
            weights[grouped.alone] = self.alone(scores[grouped.alone])
        for tokens in grouped.together:
            group_scores = scores[tokens]
            there = (group_scores != -torch.inf).any(dim=0).nonzero()[:, 0]
            weights[tokens[:, None], there] = self.together(group_scores[:, there])
        return sparse(weights, scores)


def row_largest(weights: Float[Tensor, "N E"], k: int) -> Float[Tensor, "N E"]:
    """The k largest weights of each row, zero elsewhere."""
    values, experts = weights.topk(min(k, weights.shape[1]), dim=-1)
    return torch.zeros_like(weights).scatter(1, experts, values)


def sparse(weights: Float[Tensor, "T E"], scores: Float[Tensor, "T E"]) -> Decision:
    """A decision with these weights, as many places for each token as the one with most experts needs."""
    used: Bool[Tensor, "T E"] = weights > 0
    values, experts = weights.topk(max(1, int(used.sum(dim=-1).max())) if len(weights) else 1, dim=-1)
    return Decision(experts, values, scores)


def sequences(sequence_of: Int[Tensor, " T"]) -> Iterator[Int[Tensor, " _"]]:
    """The tokens of each sequence, in the order of their numbers; padding belongs to none."""
    for number in sequence_of[sequence_of >= 0].unique().tolist():
        yield (sequence_of == number).nonzero()[:, 0]
