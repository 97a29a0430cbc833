"""Global signals: the paper's cosine, words, and both."""

from dataclasses import replace
from math import log

import pytest
import torch

from glider.errors import RouterError
from glider.experts.profile import Profile
from glider.instructions.inputs import ngrams
from glider.routing.base import GlobalScores, QueryFeatures
from glider.routing.signals.base import Signal, lead, signals
from glider.routing.signals.examples import SMOOTHING, USUAL_LEAD, Likelihoods

TEXTS = {
    "films": ["is this film good or bad", "a dull film , good or bad"],
    "sums": ["add two and three", "what is three times two"],
    "places": ["where is the river", "name the river in the north"],
}


def likelihoods(*names: str) -> Likelihoods:
    chosen = [TEXTS[name] for name in names or TEXTS]
    return Likelihoods.of_profiles([Profile.of([ngrams(text) for text in texts], []) for texts in chosen])


def asked(*texts: str) -> QueryFeatures:
    return QueryFeatures(len(texts), grams=tuple((ngrams(text),) for text in texts))


def test_a_query_leads_under_the_expert_whose_words_it_has() -> None:
    scores = likelihoods().of(asked("good or bad film", "add two and three", "the river"))
    assert scores.argmax(dim=-1).tolist() == [0, 1, 2]


def test_scores_are_naive_bayes_over_the_others_mean() -> None:
    """The formula written out, for one query of one known and one unknown word."""
    counts = [{"red": 2, "is": 1}, {"blue": 1, "is": 1}]
    profiles = [
        Profile.of([ngrams("red").repeat(n) if n == 1 else ngrams("red") for n in (1, 2)] + [ngrams("is")], []),
        Profile.of([ngrams("blue"), ngrams("is")], []),
    ]
    got = Likelihoods.of_profiles(profiles).of(asked("red"))[0]
    vocabulary = 3
    totals = [sum(known.values()) for known in counts]
    weight = log(3 / 2) + 1  # two experts, one of which knows the word
    scores = [
        weight * log((known.get("red", 0) + SMOOTHING) / (total + SMOOTHING * vocabulary)) / weight
        for known, total in zip(counts, totals, strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor([scores[0] - scores[1], scores[1] - scores[0]]) / USUAL_LEAD)


def test_leaving_an_expert_out_equals_the_pool_without_it() -> None:
    query = asked("is the film in the north good", "two rivers")
    without = likelihoods().of(query, without=1)
    assert (without[:, 1] == -torch.inf).all()
    smaller = likelihoods("films", "places").of(query)
    # the same but for the vocabulary's size, which smoothing alone sees
    torch.testing.assert_close(without[:, [0, 2]], smaller, atol=0.02, rtol=0)


def test_a_large_pool_scores_as_a_small_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """N-grams that many experts know are summed by rows, others by entries: the same scores as by entries alone."""
    words = [f"is red the expert{e} {'blue' * (e % 3 == 0)} {'green' * (e % 20 == 0)}" for e in range(100)]
    pool = Likelihoods.of_profiles([Profile.of([ngrams(text), ngrams("is it")], []) for text in words])
    queries = asked("is red the green", "expert7 is blue", "zzz", "expert7 expert9", "is", "")
    rows = pool.of(queries)
    assert rows[1].argmax() == 7
    monkeypatch.setattr("glider.routing.signals.examples._MANY", 1000)
    torch.testing.assert_close(rows, pool.of(queries), atol=1e-6, rtol=1e-5)


def test_words_that_nobody_knows_say_nothing() -> None:
    assert likelihoods().of(asked("zzz", "")).eq(0).all()
    assert likelihoods().of(asked("river zzz")).equal(likelihoods().of(asked("river")))


def test_examples_of_the_task_are_averaged_with_the_query() -> None:
    many = QueryFeatures(1, grams=((ngrams("three"), ngrams("add two")),))
    one, other = (likelihoods().of(asked(text)) for text in ("three", "add two"))
    torch.testing.assert_close(likelihoods().of(many), (one + other) / 2)


def test_permuting_the_experts_permutes_the_scores() -> None:
    query = asked("is the river bad")
    turned = likelihoods("places", "films", "sums").of(query)
    torch.testing.assert_close(likelihoods().of(query), turned[:, [1, 2, 0]])


def test_lead_is_over_the_mean_of_the_others_present() -> None:
    scores = torch.tensor([[4.0, 1.0, 3.0]])
    none = torch.zeros(1, 3, dtype=torch.bool)
    assert lead(scores, none).tolist() == [[2.0, -2.5, 0.5]]
    assert lead(scores, torch.tensor([[False, True, False]])).tolist() == [[1.0, -torch.inf, -1.0]]
    assert lead(scores[:, :1], none[:, :1]).tolist() == [[0.0]]


@pytest.mark.parametrize("name", ["instruction", "examples", "ensemble", "hidden"])
def test_every_signal_prepares_of_a_pool_and_scores_its_own_queries_highest(pool_with_profiles, name: str) -> None:
    pool = pool_with_profiles()
    made = signals.create(name)
    assert isinstance(made, Signal)
    scores = made.prepare(pool)
    assert isinstance(scores, GlobalScores)
    for column, expert in enumerate(pool):
        held = expert.profile.held_back_inputs.float()
        states = expert.profile.held_back_hidden[:1].float()
        query = QueryFeatures(1, expert.instruction[None], ((expert.profile.queries[0],),), held[:1], states)
        assert scores.of(query).argmax().item() == column
        assert scores.of(query, without=column)[0, column] == -torch.inf


@pytest.mark.parametrize("name", ["examples", "ensemble", "hidden"])
def test_an_expert_without_profile_is_named(make_pool, llama_directory, name: str) -> None:
    with pytest.raises(RouterError, match=r"profile.*none in e0, e1, e2\..*glider expert profile"):
        signals.create(name).prepare(make_pool(llama_directory))


def test_an_unknown_signal_lists_the_known() -> None:
    with pytest.raises(RouterError, match="ensemble, examples, hidden, instruction"):
        signals.create("smell")


@pytest.mark.parametrize("name", ["examples", "ensemble"])
def test_profiles_without_words_are_named(pool_with_profiles, name: str) -> None:
    """It was an index out of bounds, by a stranger's profile."""
    pool = pool_with_profiles()
    for expert in pool:
        expert.__dict__["profile"] = replace(expert.profile, counts=torch.zeros_like(expert.profile.counts))
    with pytest.raises(RouterError, match="n-grams of training inputs"):
        signals.create(name).prepare(pool)


@pytest.mark.parametrize("value", [0.0, 6e4, 3e38])
def test_states_that_cannot_be_told_apart_are_refused(pool_with_profiles, value: float) -> None:
    """It was a singular matrix."""
    pool = pool_with_profiles()
    for expert in pool:
        alike = torch.full(expert.profile.held_back_hidden.shape, value)
        expert.__dict__["profile"] = replace(expert.profile, held_back_hidden=alike)
    with pytest.raises(RouterError, match="held-back hidden states that differ"):
        signals.create("hidden").prepare(pool)


def test_states_of_another_width_than_the_bases_are_refused(pool_with_profiles) -> None:
    scores = signals.create("hidden").prepare(pool_with_profiles())
    with pytest.raises(RouterError, match=r"as wide as the base's \(7\)"):
        scores.of(QueryFeatures(1, hidden=torch.ones(1, 7)))
