"""The verdicts of queries that bring a description: it alone decides where it is almost an expert's own."""

from collections.abc import Callable
from math import sqrt
from pathlib import Path

import pytest
import torch

import glider.inference.queries as queries
from glider.calibration.threshold import calibrate
from glider.calibration.verdict import choose_thresholds
from glider.errors import EndpointError, GliderWarning
from glider.experts.pool import Pool
from glider.inference.queries import Query
from glider.inference.spec import load
from glider.instructions.inputs import ngrams
from glider.routing.base import GlobalTerm, QueryFeatures
from glider.routing.condition import Condition
from glider.routing.methods.glider import Glider
from glider.routing.preparation import Gated, prepare
from glider.routing.signals.instruction import THRESHOLDS

from .conftest import BETWEEN, STRANGER, own_query

P = THRESHOLDS["all-MiniLM-L6-v2"]


@pytest.fixture
def described(llama_directory: Path, calibrated: Callable[..., Pool]) -> Pool:
    """Four experts, calibrated for words and, with a low p, for texts beside descriptions."""
    pool = calibrated(llama_directory, 4)
    return pool.calibrate("instruction", calibrate(pool, "instruction").model_copy(update={"p": 0.1}), default=False)


def likeness(pool: Pool, expert: int, cosine: float) -> torch.Tensor:
    """An embedding with this cosine to an expert's description."""
    known = pool.experts[expert].instruction
    assert known is not None
    unit = torch.nn.functional.normalize(known.float(), dim=-1)
    other = torch.randn(len(unit), generator=torch.Generator().manual_seed(5))
    other = torch.nn.functional.normalize(other - (other @ unit) * unit, dim=-1)
    return cosine * unit + sqrt(1 - cosine**2) * other


def judged(
    pool: Pool, text: str, embedding: torch.Tensor, router: Glider | None = None
) -> tuple[Condition, GlobalTerm]:
    """The condition of one described query, and the term that it was asked by."""
    router = router or Glider()
    prepared = prepare(router, pool)
    term = prepared.described_term or prepared.global_term
    assert prepared.judge is not None and term is not None and term.signal == "instruction"
    features = QueryFeatures(1, instructions=embedding[None], grams=((ngrams(text),),))
    asked = prepared.__class__(prepared.experts, prepared.sites, term)
    condition = prepared.judge.judged(router.condition(asked, features), features, term=term, described=[True])
    assert condition.settled is not None
    return condition, term


@pytest.mark.parametrize(("cosine", "verdict"), [(1.0, "fits"), ((1 + P) / 2 + 0.01, "fits"), (P + 0.05, "unsure")])
def test_a_description_fits_alone_where_it_is_almost_the_experts(described: Pool, cosine: float, verdict: str) -> None:
    condition, _ = judged(described, BETWEEN, likeness(described, 3, cosine))
    assert condition.verdicts == (verdict,) and condition.settled is not None
    assert condition.settled.experts[0, 0] == 3
    assert condition.settled.weights[0].tolist() == pytest.approx([1, 0, 0] if verdict == "fits" else [1 / 3] * 3)


def test_a_stranger_by_words_needs_more_than_a_description_that_is_only_near(described: Pool) -> None:
    assert judged(described, STRANGER, likeness(described, 1, 1.0))[0].verdicts == ("fits",)
    assert judged(described, STRANGER, likeness(described, 1, P + 0.05))[0].verdicts == ("stranger",)


def test_words_that_fit_decide_where_the_description_does_not(described: Pool) -> None:
    condition, _ = judged(described, own_query(2), likeness(described, 0, P + 0.05))
    assert condition.verdicts == ("fits",) and condition.settled is not None and condition.alpha is not None
    assert condition.settled.experts[0, 0] == 2 and condition.settled.weights[0].tolist() == [1, 0, 0]
    assert condition.signals == ("examples",) and condition.alpha.tolist() == [103]
    assert condition.global_scores is not None and int(condition.global_scores.argmax()) == 2
    other, _ = judged(described, own_query(2), likeness(described, 0, 1.0))
    assert other.settled is not None and other.settled.experts[0, 0] == 0 and other.signals == ("instruction",)


def test_words_decide_too_in_a_pool_that_asks_by_descriptions(described: Pool) -> None:
    pool = described.calibrate("instruction", described.index.calibrations["instruction"])
    condition, _ = judged(pool, own_query(2), likeness(pool, 0, P + 0.05))
    assert condition.verdicts == ("fits",) and condition.signals == ("examples",)


def test_the_p_of_descriptions_is_the_embedders_own_and_not_that_of_texts(described: Pool) -> None:
    for router in (Glider(), Glider(global_="instruction")):
        assert judged(described, BETWEEN, likeness(described, 0, 0.5), router)[1].p == P
    prepared = prepare(Glider(global_="instruction"), described)
    assert prepared.global_term is not None and prepared.global_term.p == 0.1
    named = prepare(Gated(Glider(global_="instruction", p=0.4), abstain=True), described)
    assert named.described_term is None and named.global_term is not None and named.global_term.p == 0.4


def test_a_description_that_cannot_be_embedded_leaves_the_experts_to_the_words(
    described: Pool, llama_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, fault = load(str(llama_directory), described.path), EndpointError("an answer", "none", "Start it.")
    monkeypatch.setattr(queries, "embed_texts", lambda *_: ({}, fault))
    texts = (own_query(3), "the e1 and the e2 and the e3 and", STRANGER)
    with pytest.warns(GliderWarning):
        condition = model.condition([Query(text, description="Say it.") for text in texts])
    assert condition.verdicts == ("fits", "unsure", "stranger") and condition.settled is not None
    assert condition.settled.experts[0, 0] == 3
    assert set(condition.settled.experts[1].tolist()) == {1, 2, 3}


def test_a_query_whose_description_cannot_be_embedded_is_routed_by_token_as_one_without(
    described: Pool, llama_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, fault = load(str(llama_directory), described.path), EndpointError("an answer", "none", "Start it.")
    monkeypatch.setattr(queries, "embed_texts", lambda *_: ({}, fault))
    with pytest.warns(GliderWarning, match="the query routed by the local term alone"):
        condition = model.condition([Query(BETWEEN, description="Say it.")])
    assert condition.verdicts == ("unsure",) and condition.routed.tolist() == [True]
    assert condition.term is not None and not bool(condition.term.any())


@pytest.mark.parametrize("asked_by", ["descriptions", "texts"])
def test_an_expert_without_a_profile_takes_part_in_what_is_mixed(
    llama_directory: Path, described: Pool, grow_pool, monkeypatch: pytest.MonkeyPatch, asked_by: str
) -> None:
    pool = described.calibrate("instruction", described.index.calibrations["instruction"])
    pool = grow_pool(pool, llama_directory, "plain", seed=9)
    if asked_by == "texts":
        pool = pool.set_verdicts(choose_thresholds(pool, experts=3))
    vector = likeness(pool, 4, 0.99 if asked_by == "descriptions" else 0.05)
    monkeypatch.setattr(queries, "embed_texts", lambda texts, *_: (dict.fromkeys(texts, vector), None))
    model = load(str(llama_directory), pool.path)
    query = Query(BETWEEN, description="Do the plain thing." if asked_by == "descriptions" else None)
    condition = model.condition([query])
    assert condition.verdicts == ("unsure",) and condition.settled is not None and condition.global_scores is not None
    assert condition.settled.experts[0].tolist() == condition.global_scores[0].topk(3).indices.tolist()
    assert condition.settled.weights[0].tolist() == pytest.approx([1 / 3] * 3)
