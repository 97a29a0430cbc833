"""From scores to the experts kept: counts, weights, ties with infinity, precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.errors import RouterError
from glider.routing.nearest import Nearest, Uniform
from glider.routing.select import Select, TopK, TopP

TOKENS = st.integers(1, 6)
EXPERTS = st.integers(1, 9)
SCALES = st.sampled_from([0.01, 1.0, 30.0, 1000.0])
SEEDS = st.integers(0, 2**16)


def random_scores(tokens: int, experts: int, scale: float, seed: int) -> torch.Tensor:
    return scale * torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, derandomize=True)
@given(TOKENS, EXPERTS, st.integers(1, 12), SCALES, SEEDS)
def test_top_k_keeps_k_distinct_experts_with_weights_of_sum_one(
    t: int, e: int, k: int, scale: float, seed: int
) -> None:
    scores = random_scores(t, e, scale, seed)
    decision = TopK(k)(scores)
    kept = min(k, e)
    assert decision.experts.shape == decision.weights.shape == (t, kept)
    assert torch.isfinite(decision.weights).all() and (decision.weights >= 0).all()
    torch.testing.assert_close(decision.weights.sum(-1), torch.ones(t), atol=1e-5, rtol=0)
    for row, largest in zip(decision.experts.tolist(), scores.topk(kept).indices.tolist(), strict=True):
        assert len(set(row)) == kept
        assert set(row) <= set(range(e))
        assert row[0] == largest[0]
    probabilities = scores.double().softmax(-1).gather(1, decision.experts)
    expected = probabilities / (probabilities.sum(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(decision.weights.double(), expected, atol=1e-5, rtol=1e-3)


@settings(deadline=None, derandomize=True)
@given(TOKENS, EXPERTS, st.integers(1, 9), SEEDS)
def test_top_k_without_renormalising_leaves_probabilities(t: int, e: int, k: int, seed: int) -> None:
    scores = random_scores(t, e, 1.0, seed)
    decision = TopK(k, renormalise=False)(scores)
    torch.testing.assert_close(decision.weights, scores.softmax(-1).gather(1, decision.experts))


@settings(deadline=None, derandomize=True)
@given(TOKENS, EXPERTS, st.floats(0.01, 1.0), SCALES, SEEDS)
def test_top_p_keeps_the_smallest_set_that_reaches_p(t: int, e: int, p: float, scale: float, seed: int) -> None:
    scores = random_scores(t, e, scale, seed)
    decision = TopP(p)(scores)
    probabilities = scores.double().softmax(-1).gather(1, decision.experts)
    torch.testing.assert_close(decision.weights.sum(-1), torch.ones(t), atol=1e-5, rtol=0)
    assert sorted(decision.experts[0].tolist()) == list(range(e))
    for weights, shares in zip(decision.weights, probabilities, strict=True):
        kept = weights > 0
        assert kept[0]
        assert shares[kept].sum() >= p - 1e-5
        if kept.sum() > 1:
            assert shares[: int(kept.sum()) - 1].sum() < p + 1e-5
        torch.testing.assert_close(weights[kept].double(), shares[kept] / shares[kept].sum(), atol=1e-4, rtol=1e-3)


def test_top_p_is_exact_on_a_plain_case() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert TopP(0.45)(scores).weights.gt(0).sum() == 1
    assert TopP(0.75)(scores).weights.tolist()[0] == pytest.approx([0.625, 0.375, 0.0])
    assert TopP(1.0)(scores).weights.tolist()[0] == pytest.approx([0.5, 0.3, 0.2])


@pytest.mark.parametrize("select", [TopK(1), TopK(2), TopK(4), TopP(0.3), TopP(1.0)], ids=str)
def test_minus_infinity_gets_no_weight(select: TopK | TopP) -> None:
    scores = torch.tensor([[1.0, -torch.inf, 0.5, -torch.inf], [-torch.inf, -torch.inf, -torch.inf, -9.0]])
    decision = select(scores)
    dense = torch.zeros(2, 4).scatter_add(1, decision.experts, decision.weights)
    assert (dense[scores == -torch.inf] == 0).all()
    assert dense.sum(-1).tolist() == pytest.approx([1, 1], abs=1e-5)


@settings(deadline=None, derandomize=True)
@given(TOKENS, EXPERTS, st.sampled_from([TopK(1), TopK(3), TopP(0.5), TopP(0.9)]), SEEDS)
def test_an_expert_at_minus_infinity_changes_no_weight(t: int, e: int, select: TopK | TopP, seed: int) -> None:
    scores = random_scores(t, e, 2.0, seed)
    more = torch.cat([scores, torch.full((t, 1), -torch.inf)], dim=1)
    before, after = select(scores), select(more)
    dense = torch.zeros(t, e + 1).scatter_add(1, before.experts, before.weights)
    torch.testing.assert_close(torch.zeros(t, e + 1).scatter_add(1, after.experts, after.weights), dense)


@pytest.mark.parametrize("select", [TopK(2), TopP(0.9)], ids=str)
def test_a_dominant_global_term_underflows_the_second_weight(select: TopK | TopP) -> None:
    decision = select(1000 * torch.tensor([[0.9, 0.5, 0.1]]))
    assert decision.weights[0, 0].item() == pytest.approx(1, abs=1e-5)
    assert decision.weights[0, 1].item() == 0


@pytest.mark.parametrize("select", [TopK(3), TopP(1.0)], ids=str)
def test_bfloat16_scores_are_weighed_in_float32(select: TopK | TopP) -> None:
    scores = random_scores(5, 3, 1.0, 0).bfloat16()
    decision, wanted = select(scores), select(scores.float())
    assert decision.weights.dtype == torch.float32
    assert torch.equal(decision.weights, wanted.weights)


def test_scores_are_kept_for_traces() -> None:
    scores = random_scores(2, 3, 1.0, 0)
    assert TopK(1)(scores).scores is scores
    assert TopP(0.5)(scores).scores is scores


@pytest.mark.parametrize("k", [0, -1])
def test_top_k_refuses_a_count_below_one(k: int) -> None:
    with pytest.raises(RouterError, match="at least 1"):
        TopK(k)


@pytest.mark.parametrize("p", [0.0, -0.1, 1.01, float("nan")])
def test_top_p_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(RouterError, match="p in"):
        TopP(p)


@pytest.mark.parametrize("select", [TopK(2), TopK(2, False), TopP(0.6), Nearest(2), Uniform(2)], ids=repr)
def test_nobody_is_kept_where_everybody_is_left_out(select: Select) -> None:
    scores = torch.full((3, 4), -torch.inf)
    scores[1, 2], scores[2, 0] = 1.0, torch.nan
    weights = select(scores).weights
    assert weights[0].tolist() == [0.0] * len(weights[0])
    assert weights[1].sum() == pytest.approx(1, abs=1e-5)
    assert select == Uniform(2) or weights[2].isnan().any()  # what is not a number stays seen
