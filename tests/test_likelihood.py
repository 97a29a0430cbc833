"""Several prompts with several choices in one batch: each scores as it does alone."""

from pathlib import Path

import pytest
import torch

from glider.errors import QueryError
from glider.loading import load
from glider.model import Query, RoutedModel

PROMPTS = ["is it so?", "a much longer question about something else entirely", "why?"]
CHOICES = [["yes", "no", "perhaps not"], ["x"], ["because", "1 2 3"]]


@pytest.fixture(params=["glider", "phatgoose", "tasklevel", "base"])
def model(request, base_directory: Path, make_pool) -> RoutedModel:
    return load(str(base_directory), make_pool(base_directory).path, router=request.param)


def test_a_batch_scores_as_the_prompts_one_by_one(model: RoutedModel) -> None:
    together, _ = model.score_many(PROMPTS, CHOICES)
    for prompt, choices, scores in zip(PROMPTS, CHOICES, together, strict=True):
        alone = model.score(prompt, choices)
        assert [score.choice for score in scores] == choices
        assert [score.tokens for score in scores] == [score.tokens for score in alone]
        torch.testing.assert_close(
            torch.tensor([score.log_likelihood for score in scores]),
            torch.tensor([score.log_likelihood for score in alone]),
            atol=2e-3,
            rtol=1e-4,
        )


def test_each_row_keeps_its_own_global_term(base_directory: Path, make_pool) -> None:
    model = load(str(base_directory), make_pool(base_directory).path, p=-1.0)
    queries = [Query(PROMPTS[0], description="Answer yes or no."), Query(PROMPTS[0], description="Translate a poem.")]
    (first, second), condition = model.score_many(queries, [["yes"], ["yes"]])
    assert condition is not None and len(condition.alpha) == 2
    assert first[0].log_likelihood != pytest.approx(second[0].log_likelihood, abs=1e-3)
    assert second[0].log_likelihood == pytest.approx(model.score(queries[1], ["yes"])[0].log_likelihood, abs=2e-3)


def test_a_row_without_choices_is_refused(llama_directory: Path, make_pool) -> None:
    model = load(str(llama_directory), make_pool(llama_directory).path, router="base")
    with pytest.raises(QueryError, match="at least one choice"):
        model.score_many(PROMPTS[:2], [["a"], []])
