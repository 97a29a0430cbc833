"""The verdict of each query, and its effect on the query's row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from glider.errors import QueryError
from glider.experts.thresholds import Thresholds
from glider.routing.base import GlobalTerm, QueryFeatures
from glider.routing.condition import Condition, Settled
from glider.routing.global_part import DESCRIPTIONS
from glider.shapes import Bool, Float, Int, Tensor
from glider.verdicts.contest import Contest
from glider.verdicts.kinship import Kinship

Verdict = Literal["fits", "unsure", "stranger"]
Override = Literal["route", "base"]


@dataclass(frozen=True)
class Judge:
    """Decides for each query whether the pool knows its task; the base alone answers unknown ones.

    - `stranger`: even the likeliest expert's margin over everyday requests is below `thresholds.stranger`, or no expert
    knows a word of it. The base answers the row.
    - `fits`: no stranger, and the best global score is above the p of alpha; of a pool of one expert, its margin is at
      least `thresholds.fits`.
    - `unsure`: otherwise.

    Tasks that an expert harms have descriptions beyond p as well. So a query that brings one fits by its words, which
    `term` scores; or, whatever they are, where its description is beyond the middle between p and an equal one. With
    `settles` every token of a query that fits uses its best expert with weight 1, what alpha = 103 comes to. The
    tokens of an unsure one are routed one by one, unless it mixes several experts (`thresholds.mixed`): then every
    token uses that many of the likeliest alike, `thresholds.share` in all, and no gate is scored. Where that is 0 the
    base answers, also without `settles`. With `kinship` these are the experts whose descriptions are nearest. `term`
    scores the experts for a router without a global term, too.
    """

    contest: Contest
    thresholds: Thresholds
    settles: bool
    term: GlobalTerm | None = None
    kinship: Kinship | None = None

    def judged(
        self,
        condition: Condition,
        features: QueryFeatures,
        overrides: Sequence[Override | None] = (),
        term: GlobalTerm | None = None,
        described: Sequence[bool] = (),
        kinship: Callable[[Sequence[int]], Float[Tensor, "N E"]] | None = None,
    ) -> Condition:
        """The condition with each row's verdict, and with what follows of it except where the caller overrides it.

        `term` made the condition's global scores, of descriptions for the rows that are `described`. `kinship` embeds
        the rows it is called with, and gives their scores by `self.kinship`; it is called for unsure rows alone.
        """
        margins = self.contest.margins(features)  # (B, E)
        scores, confident = self._scores(condition, features, margins, term)
        stranger = (margins.amax(dim=-1) < self.thresholds.stranger) | ~self.contest.resemblance(features)
        if term is not None and self.contest.experts > 1 and any(described):
            by_description = torch.tensor(described, dtype=torch.bool)
            certain = by_description & (scores.amax(dim=-1) > (1 + term.p) / 2)
            stranger &= ~certain
            confident = torch.where(by_description, certain, confident)
            by_words, condition = self._by_words(condition, features, margins, by_description & ~certain)
            confident |= by_words
            if bool(by_words.any()) and condition.global_scores is not None:
                scores = _known(condition.global_scores, margins)
        silent = ((scores == 0) | (scores == -torch.inf)).all(dim=-1)  # a query that could not be embedded
        scores = torch.where(silent[:, None], margins, scores)
        fits = confident & ~stranger
        verdicts = tuple(
            "stranger" if far else "fits" if near else "unsure"
            for far, near in zip(stranger.tolist(), fits.tolist(), strict=True)
        )
        free = torch.ones(len(margins), dtype=torch.bool)
        for row, override in enumerate(overrides):
            free[row] = override is None
        unsure = ~stranger & ~fits & free
        by_kind = [
            self.thresholds.mixed(described=one and not without)  # a description that could not be embedded is none
            for one, without in zip(described or [False] * len(margins), silent.tolist(), strict=True)
        ]
        mixed = torch.where(unsure, torch.tensor(by_kind, dtype=torch.long), 0)
        settled, bare = None, (stranger & free) | ((mixed > 0) & (self.thresholds.share == 0))
        if self.settles:
            scores = self._with_unknown(scores, condition, unsure & ~silent)
            if self.kinship is not None and kinship is not None and bool(unsure.any()):
                scores = _with_rows(scores, unsure, kinship(unsure.nonzero()[:, 0].tolist()))
            settled = self._settled(scores, fits & free, mixed)
        return replace(
            condition,
            bare=condition.bare_rows | bare,
            settled=condition.settled if settled is None else settled,
            verdicts=verdicts,
        )

    def _with_unknown(
        self, scores: Float[Tensor, "B E"], condition: Condition, rows: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B E"]:
        """The scores, in these rows those of experts without a profile too: an unsure query may use them."""
        if condition.global_scores is None or self.contest.experts == 1:
            return scores
        return torch.where(rows[:, None], condition.global_scores.detach().float().cpu(), scores)

    def _scores(
        self, condition: Condition, features: QueryFeatures, margins: Float[Tensor, "B E"], term: GlobalTerm | None
    ) -> tuple[Float[Tensor, "B E"], Bool[Tensor, " B"]]:
        """The score of each expert for each query, and whether the best is high enough to fit.

        They are the router's own where its p decides anything, which it does not without gamma.
        """
        if self.contest.experts == 1:
            return margins, margins[:, 0] >= self.thresholds.fits
        scores = condition.global_scores
        if scores is None or term is None or not (self.settles or term.gamma):
            if self.term is None:
                return margins, torch.zeros(len(margins), dtype=torch.bool)
            scores, term = self.term.scores.of(features), self.term
        scores = _known(scores, margins)
        return scores, scores.amax(dim=-1) > term.p

    def _by_words(
        self, condition: Condition, features: QueryFeatures, margins: Float[Tensor, "B E"], rows: Bool[Tensor, " B"]
    ) -> tuple[Bool[Tensor, " B"], Condition]:
        """Which of these rows fit by their words, and the condition with the term of words for them."""
        scores, alpha, term = condition.global_scores, condition.alpha, self.term
        if term is None or term.signal == DESCRIPTIONS or scores is None or alpha is None or not bool(rows.any()):
            return torch.zeros_like(rows), condition
        by_words = term.scores.of(features)
        fits = rows & (_known(by_words, margins).amax(dim=-1) > term.p)
        there = fits.to(scores.device)
        signals = (term.signal if fit else signal for fit, signal in zip(fits.tolist(), condition.signals, strict=True))
        condition = replace(
            condition,
            global_scores=torch.where(there[:, None], by_words.to(scores), scores),
            alpha=torch.where(there, term.gamma + term.beta, alpha),
            shift=None if condition.shift is None else condition.shift.masked_fill(there, 0.0),
            signals=tuple(signals),
        )
        return fits, condition

    def _settled(
        self,
        scores: Float[Tensor, "B E"],
        fits: Bool[Tensor, " B"],
        mixed: Int[Tensor, " B"],
    ) -> Settled:
        """The experts of the queries that fit, and of those that mix some; the tokens of the others choose."""
        places = max(1, min(self.thresholds.most_mixed, self.contest.experts))
        experts = scores.topk(places, dim=-1).indices  # (B, K)
        weights = torch.zeros(experts.shape)
        weights[fits, 0] = 1.0
        present = (scores.gather(-1, experts) > -torch.inf) & (torch.arange(places) < mixed[:, None])
        shares = self.thresholds.share * present / present.sum(dim=-1, keepdim=True).clamp(min=1)
        weights = torch.where(mixed[:, None] > 0, shares, weights)
        return Settled(experts, weights)


def _known(scores: Float[Tensor, "B E"], margins: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    """The scores on the CPU, minus infinity for an expert without a profile."""
    return scores.detach().float().cpu().masked_fill(~torch.isfinite(margins), -torch.inf)


def _with_rows(
    scores: Float[Tensor, "B E"], rows: Bool[Tensor, " B"], others: Float[Tensor, "N E"]
) -> Float[Tensor, "B E"]:
    """The scores with others in these rows, except where they are not known."""
    result = scores.clone()
    result[rows] = torch.where(others.isnan().any(dim=-1, keepdim=True), scores[rows], others)
    return result


def override_of(text: str | None) -> Override | None:
    """An override by its name; raises `QueryError` for another word."""
    if text is not None and text not in get_args(Override):
        raise QueryError("a verdict of route or base", repr(text), "Leave it out to let the pool decide.")
    return text  # pyright: ignore[reportReturnType]
