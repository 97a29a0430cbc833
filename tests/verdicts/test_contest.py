"""The contest between experts and everyday requests."""

from math import log

import pytest
import torch

from glider.experts.profile import Profile
from glider.instructions.inputs import ngrams
from glider.routing.base import QueryFeatures
from glider.routing.signals.examples import SMOOTHING, USUAL_LEAD
from glider.verdicts.background import Background
from glider.verdicts.contest import Contest


def features(*texts: str) -> QueryFeatures:
    return QueryFeatures(len(texts), grams=tuple((ngrams(text),) for text in texts))


def test_margins_are_the_formula() -> None:
    profile = Profile.of([ngrams("red fox"), ngrams("red hen")], [])
    contest = Contest.of([profile, None], Background.of([["red car", "blue car"]], judged=0))
    known = {gram for text in ("red fox", "red hen", "red car", "blue car") for gram in ngrams(text).tolist()}
    expert = {gram: sum(gram in ngrams(text).tolist() for text in ("red fox", "red hen")) for gram in known}
    base = {gram: sum(gram in ngrams(text).tolist() for text in ("red car", "blue car")) for gram in known}

    def likelihood(counts: dict[int, int], gram: int) -> float:
        return log((counts[gram] + SMOOTHING) / (sum(counts.values()) + SMOOTHING * len(known)))

    text = [gram for gram in ngrams("a red fox").tolist() if gram in known]
    weights = {gram: log(3 / (1 + (expert[gram] > 0) + (base[gram] > 0))) + 1 for gram in text}
    sums = [sum(weights[gram] * likelihood(counts, gram) for gram in text) for counts in (expert, base)]
    norm = sum(weight**2 for weight in weights.values()) ** 0.5
    margins = contest.margins(features("a red fox"))
    assert margins[0, 0].item() == pytest.approx((sums[0] - sums[1]) / norm / USUAL_LEAD, abs=1e-5)
    assert margins[0, 1] == -torch.inf  # no profile, no verdict for it


def test_a_fold_is_judged_by_what_has_not_seen_it() -> None:
    folds = [["red car", "blue car"], ["old song", "new song"]]
    profile = Profile.of([ngrams("red fox")], [])
    contest = Contest.of([profile], Background.of(folds, judged=4))
    without = Contest.of([profile], Background.of([folds[1]], judged=0))
    texts = contest.background.of_fold(0)
    seen = contest.margins(QueryFeatures(len(texts), grams=tuple((text,) for text in texts)))
    unseen = contest.strangers(0)
    assert (unseen > seen).all()
    assert without.margins(features("blue car")).shape == (1, 1)
    assert contest.strangers(1).shape == (2, 1)


def test_words_that_nobody_knows_say_nothing() -> None:
    contest = Contest.of([Profile.of([ngrams("red fox")], [])], Background.of([["red car"]], judged=0))
    assert contest.margins(features("xyzzy", "")).tolist() == [[0.0], [0.0]]
