"""Experts that a request leaves out: of what alpha looks at, and of what is settled."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import glider.inference.queries as queries
from glider.calibration.threshold import calibrate
from glider.calibration.verdict import choose_thresholds
from glider.errors import EndpointError, GliderWarning
from glider.experts.pool import Pool
from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import load
from glider.routing.base import Prepared
from glider.serve.schemas import Steering
from glider.serve.steering import Guided, Way, guided

from .conftest import BETWEEN, STRANGER, own_query
from .test_described import likeness

LOW = 0.1  # the stored p of texts beside descriptions


def asked(model: RoutedModel, text: str, **told: Any) -> Guided:
    steering = Steering(**told)
    query = Query(text, steering.description, tuple(steering.examples))
    return guided(model, model.attached.generation, Way("routed"), query, [], steering)


@pytest.fixture
def by_descriptions(llama_directory: Path, calibrated: Callable[..., Pool], monkeypatch) -> RoutedModel:
    """Four experts asked by descriptions; each query's is somewhat like that of e0."""
    pool = calibrated(llama_directory, 4)
    stored = calibrate(pool, "instruction").model_copy(update={"p": LOW})
    pool = pool.calibrate("instruction", stored)
    vector = likeness(pool, 0, 0.68)
    monkeypatch.setattr(queries, "embed_texts", lambda texts, *_: (dict.fromkeys(texts, vector), None))
    return load(str(llama_directory), pool.path)


def test_what_nothing_reads_leaves_alpha_as_it_is_without_it(llama_directory: Path, calibrated) -> None:
    model = load(str(llama_directory), calibrated(llama_directory, 4, embedder=None).path)
    plain = asked(model, own_query(0), exclude=["e0"])
    told = asked(model, own_query(0), exclude=["e0"], description="Say what it is.")
    assert told.fault is not None and (plain.alpha, told.alpha) == (3, 3)
    assert told.condition.digest(0) == plain.condition.digest(0)


def test_words_that_fitted_an_expert_left_out_fit_no_more(by_descriptions: RoutedModel) -> None:
    told = {"description": "Say what it is."}
    assert asked(by_descriptions, own_query(2), **told).condition.signals == ("examples",)
    assert asked(by_descriptions, own_query(2), **told).alpha == 103
    assert asked(by_descriptions, own_query(2), **told, exclude=["e1"]).alpha == 103
    assert asked(by_descriptions, own_query(2), **told, exclude=["e2"]).alpha == 3


def test_a_description_that_failed_leaves_words_to_alpha(by_descriptions: RoutedModel, monkeypatch) -> None:
    fault = EndpointError("an answer", "none", "Start it.")
    monkeypatch.setattr(queries, "embed_texts", lambda *_: ({}, fault))
    with pytest.warns(GliderWarning):
        assert asked(by_descriptions, own_query(2), description="Say.").alpha == 103
        assert asked(by_descriptions, own_query(2), description="Say.", exclude=["e2"]).alpha == 3
        assert asked(by_descriptions, BETWEEN, exclude=["e2"]).alpha == 3


def test_a_description_has_its_own_p_where_an_expert_is_left_out(by_descriptions: RoutedModel) -> None:
    told = asked(by_descriptions, BETWEEN, description="Say.", verdict="route", exclude=["e0"])
    assert LOW < max(told.scores.values()) < 0.63 and told.alpha == 3
    assert asked(by_descriptions, BETWEEN, verdict="route", exclude=["e0"]).alpha == 103


def test_the_others_that_an_unsure_query_mixes_share_what_one_left_out_had(by_descriptions: RoutedModel) -> None:
    whole = asked(by_descriptions, BETWEEN, description="Say.")
    assert whole.verdict == "unsure" and whole.condition.settled is not None
    first, *others = whole.condition.settled.experts[0].tolist()
    fewer = asked(by_descriptions, BETWEEN, description="Say.", exclude=[f"e{first}"]).condition.settled
    assert fewer is not None
    weights = dict(zip(fewer.experts[0].tolist(), fewer.weights[0].tolist(), strict=True))
    assert weights == pytest.approx({first: 0.0, **dict.fromkeys(others, 0.5)})
    none = asked(by_descriptions, BETWEEN, description="Say.", exclude=[f"e{one}" for one in (first, *others)])
    assert bool(none.condition.routed[0]) and len(none.scores) == 1


def test_a_router_that_abstains_by_itself_does_so_beside_one_that_does_not(llama_directory: Path, calibrated) -> None:
    pool = calibrated(llama_directory, 4)
    for router, other, verdict in (
        ("phatgoose", "glider", "stranger"),
        ("phatgoose", "glider(abstain=false)", None),
        ("glider(abstain=false)", "glider", None),
        ("glider", "phatgoose", None),
    ):
        model = load(str(llama_directory), pool.path, router=router)
        way = Way("routed", router=other)
        told = guided(model, model.attached.generation, way, Query(STRANGER), [], Steering())
        assert told.verdict == verdict and bool(told.condition.bare_rows[0]) is (verdict is not None)
        model.detach()


def test_what_fitted_an_expert_left_out_is_the_bases_where_unsure_queries_are(
    llama_directory: Path, calibrated: Callable[..., Pool]
) -> None:
    pool = calibrated(llama_directory, 4, embedder=None)
    by_tokens = load(str(llama_directory), pool.path)
    pool.set_verdicts(choose_thresholds(pool, experts=3, share=0.0))
    model = load(str(llama_directory), pool.path)
    assert asked(model, own_query(0)).condition.settled is not None
    without = asked(model, own_query(0), exclude=["e0"])
    assert without.verdict == "fits" and bool(without.condition.bare_rows[0])
    assert not bool(asked(model, own_query(0), exclude=["e1"]).condition.bare_rows[0])
    assert not bool(asked(model, own_query(0), exclude=["e0"], verdict="route").condition.bare_rows[0])
    assert not bool(asked(model, own_query(0), experts=["e1"]).condition.bare_rows[0])
    assert not bool(asked(by_tokens, own_query(0), exclude=["e0"]).condition.bare_rows[0])
    settled = replace(model.attached.generation, prepared=_fitting_all(model))
    both = guided(model, settled, Way("routed"), Query(own_query(0)), [], Steering(exclude=["e0"]))
    assert not bool(both.condition.bare_rows[0])  # another expert fits as well


def test_explain_tells_that_the_base_answers_what_is_unsure(
    glider: Callable[..., Any], llama_directory: Path, calibrated: Callable[..., Pool]
) -> None:
    pool = calibrated(llama_directory, 4, embedder=None)
    shared = ("explain", BETWEEN, "--pool", pool.path, "--base", llama_directory)
    assert "verdict unsure\n" in glider(*shared).out
    pool.set_verdicts(choose_thresholds(pool, experts=3, share=0.0))
    assert "verdict unsure: the base model alone\n" in glider(*shared).out


def _fitting_all(model: RoutedModel) -> Prepared:
    """What the model has prepared, with a p that every expert's score is above."""
    prepared = model.attached.generation.prepared
    assert prepared.global_term is not None
    return replace(prepared, global_term=replace(prepared.global_term, p=-10.0))
