"""What a trace counts: every real token once, no pads, nothing after the end of a row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

from glider.errors import QueryError
from glider.inference.model import RoutedModel
from glider.inference.spec import load
from glider.layers.trace import Trace
from glider.routing.base import Decision

LONG, SHORT = "A rather long question about the weather", "hi"
END = 1


class EndRow(LogitsProcessor):
    """Makes one row write its end token at its third step, and the others never."""

    def __init__(self, row: int):
        self.row, self.step = row, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.step += 1
        scores[:, END] = -torch.inf
        if self.step == 3:
            scores[self.row] = -torch.inf
            scores[self.row, END] = 0.0
        return scores


@pytest.fixture
def model(base_directory: Path, make_pool) -> RoutedModel:
    # experts that are no near tie at any token here: another order of sums, as under padding, swaps those
    return load(str(base_directory), make_pool(base_directory, 3, first_seed=10).path)


def call(trace: Trace, site: str, experts: list[list[int]], weights: list[list[float]]) -> None:
    trace.add(site, Decision(torch.tensor(experts), torch.tensor(weights)))


def test_heatmap_and_usage_of_a_case_done_by_hand() -> None:
    mask = torch.tensor([[False, True], [True, True]])
    trace = Trace(["a", "b"], None, mask)
    call(trace, "first", [[0, 1]] * 4, [[1.0, 0.0], [0.5, 0.5], [0.25, 0.75], [0.75, 0.25]])
    call(trace, "second", [[1]] * 4, [[1.0]] * 4)
    call(trace, "first", [[0, 1]] * 2, [[0.9, 0.1], [0.1, 0.9]])
    trace.generated = [1, 2]
    assert trace.sites == ["first", "second"]
    row_0, row_1 = torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([[1.1 / 3, 1.9 / 3], [0.0, 1.0]])
    torch.testing.assert_close(trace.heatmap(0), row_0)
    torch.testing.assert_close(trace.heatmap(1), row_1)
    torch.testing.assert_close(trace.heatmap(), torch.tensor([[1.6 / 4, 2.4 / 4], [0.0, 1.0]]))
    assert trace.usage(0) == pytest.approx({"a": 0.25, "b": 0.75})


def test_a_trace_of_nothing_is_all_zero() -> None:
    assert Trace(["a", "b"], None, torch.ones(1, 3, dtype=torch.bool)).usage() == {"a": 0, "b": 0}


def test_pads_are_not_counted(model: RoutedModel) -> None:
    _, together = model.generate_traced([LONG, SHORT], max_new_tokens=4)
    for row, prompt in enumerate((LONG, SHORT)):
        _, alone = model.generate_traced([prompt], max_new_tokens=4)
        torch.testing.assert_close(together.heatmap(row), alone.heatmap(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("generation", [{"num_beams": 3}, {"use_cache": False}], ids=["beams", "no cache"])
def test_pads_are_not_counted_however_the_model_generates(model: RoutedModel, generation: dict[str, Any]) -> None:
    """Beams multiply the rows of the prompt's pass; without a cache the prompt passes again at every step."""
    _, together = model.generate_traced([LONG, SHORT], max_new_tokens=4, min_new_tokens=4, **generation)
    _, alone = model.generate_traced([SHORT], max_new_tokens=4, min_new_tokens=4, **generation)
    torch.testing.assert_close(together.heatmap(1), alone.heatmap(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("early", [None, 0, 1])
@pytest.mark.parametrize("pieces", [1, 4, 512])
def test_a_prompt_in_pieces_counts_as_one_in_a_pass(
    llama_directory: Path, make_pool, pieces: int, early: int | None
) -> None:
    """A piece may be all padding, and there may be more of them than tokens of the answer."""

    model = load(str(llama_directory), make_pool(llama_directory, 3, first_seed=10).path)

    def heatmaps(**settings: Any) -> list[torch.Tensor]:
        processors = [] if early is None else [EndRow(early)]
        _, trace = model.generate_traced([LONG, SHORT], max_new_tokens=5, logits_processor=processors, **settings)
        return [trace.heatmap(row) for row in (0, 1)]

    for got, wanted in zip(heatmaps(prefill_chunk_size=pieces), heatmaps(), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("generation", [{"guidance_scale": 1.5}, {"prompt_lookup_num_tokens": 3}])
def test_passes_over_other_tokens_are_not_traced(llama_directory: Path, make_pool, generation: dict[str, Any]) -> None:
    """Guidance takes each token without its prompt as well; guesses may not be kept."""
    model = load(str(llama_directory), make_pool(llama_directory, 2).path, router="phatgoose")
    with pytest.raises(QueryError, match=r"guidance_scale|assisted generation"):
        model.generate([LONG], max_new_tokens=3, trace=True, **generation)
    assert model.generate([LONG], max_new_tokens=3, **generation)[0].token_ids


@pytest.mark.parametrize("early", [0, 1])
def test_a_row_that_ended_counts_no_later_token(model: RoutedModel, early: int) -> None:
    prompts = [SHORT, LONG]
    answers, together = model.generate_traced(prompts, max_new_tokens=9, logits_processor=[EndRow(early)])
    assert [len(answer.token_ids) for answer in answers] == [3 if row == early else 9 for row in range(2)]
    [own], alone = model.generate_traced([prompts[early]], max_new_tokens=9, logits_processor=[EndRow(0)])
    assert own.token_ids == answers[early].token_ids
    torch.testing.assert_close(together.heatmap(early), alone.heatmap(), atol=1e-4, rtol=0)


def test_usage_sums_to_one_over_experts(model: RoutedModel) -> None:
    answers, trace = model.generate_traced([LONG, SHORT], max_new_tokens=5)
    for usage in (trace.usage(), *(answer.usage for answer in answers)):
        assert list(usage) == ["e0", "e1", "e2"]
        assert sum(usage.values()) == pytest.approx(1, abs=1e-4)
        assert min(usage.values()) >= 0
    assert answers[0].usage == trace.usage(0)


def test_heatmap_has_a_row_for_each_site_and_a_column_for_each_expert(model: RoutedModel) -> None:
    _, trace = model.generate_traced([LONG, SHORT], max_new_tokens=2)
    assert sorted(trace.sites) == sorted(model.pool.sites)
    for row in (None, 0, 1):
        assert trace.heatmap(row).shape == (len(model.pool.sites), 3)
        torch.testing.assert_close(trace.heatmap(row).sum(-1), torch.ones(len(trace.sites)), atol=1e-4, rtol=0)


def test_a_prompts_trace_has_each_token_at_each_site(model: RoutedModel) -> None:
    tokens, trace = model.trace(SHORT)
    assert "".join(tokens).replace("<u>", "").startswith(SHORT)
    assert len(trace.calls) == len(model.pool.sites)
    assert trace.condition is not None and trace.condition.global_scores.shape == (1, 3)
    for made in trace.calls:
        weights = trace.weights(made)
        decoder = made.site.startswith("decoder") and ".EncDecAttention.k" not in made.site
        decoder = decoder and ".EncDecAttention.v" not in made.site
        assert weights.shape == (1, 1 if decoder else len(tokens), 3)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]), atol=1e-4, rtol=0)
        assert made.decision.scores is not None


def test_nothing_is_recorded_unless_asked(model: RoutedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("recorded")

    monkeypatch.setattr(Trace, "record", refuse)
    [answer] = model.generate([SHORT], max_new_tokens=2)
    assert answer.usage == {}
    with pytest.raises(AssertionError, match="recorded"):
        model.generate([SHORT], max_new_tokens=2, trace=True)


def test_tracing_changes_no_answer(model: RoutedModel) -> None:
    traced, _ = model.generate_traced([LONG, SHORT], max_new_tokens=6)
    plain = model.generate([LONG, SHORT], max_new_tokens=6)
    assert [answer.token_ids for answer in traced] == [answer.token_ids for answer in plain]


def test_a_router_without_experts_traces_nothing(base_directory: Path, make_pool) -> None:
    model = load(str(base_directory), make_pool(base_directory, 1).path, router="base")
    [answer], trace = model.generate_traced([SHORT], max_new_tokens=2)
    assert trace.calls == [] and answer.usage == {} and answer.global_scores == {} and answer.alpha is None
