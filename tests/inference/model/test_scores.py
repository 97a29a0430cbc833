"""Scores of choices are likelihoods of whole sequences, under the query's own condition."""

from pathlib import Path

import pytest
import torch

from glider.inference.answers import ChoiceScore
from glider.inference.model import RoutedModel
from glider.inference.spec import load

from .prompts import PROMPTS


@torch.inference_mode()
def plain_score(model: RoutedModel, prompt: str, choice: str) -> tuple[float, int]:
    """The whole sequence at once, for one choice."""
    ids = model.prompt.prompt_ids(model.tokenizer, prompt)
    target = [*model.tokenizer(choice, add_special_tokens=False)["input_ids"], model.tokenizer.eos_token_id]
    with model.attached.routing(model.condition([prompt])):
        if model.model.config.is_encoder_decoder:
            logits = model.model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0, *target[:-1]]]))
            logits = logits.logits[0]
        else:
            logits = model.model(torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1]
    logp = logits.log_softmax(-1)
    return sum(logp[i, token].item() for i, token in enumerate(target)), len(target)


@pytest.mark.parametrize(
    "choices",
    [["yes", "no", "perhaps, perhaps not", "n", ""], ["a", "b"], ["only one"], [""], ["é", "same", "same"]],
    ids=["unlike lengths", "one letter", "one choice", "end token alone", "repeated"],
)
def test_scores_are_those_of_the_whole_sequence(model: RoutedModel, choices: list[str]) -> None:
    scores = model.score(PROMPTS[0], choices)
    assert [score.choice for score in scores] == choices
    for score in scores:
        total, tokens = plain_score(model, PROMPTS[0], score.choice)
        assert score.tokens == tokens
        assert score.log_likelihood == pytest.approx(total, abs=2e-3, rel=1e-4)
        assert score.normalised == pytest.approx(total / tokens, abs=2e-3, rel=1e-4)


def test_a_choices_score_does_not_depend_on_the_others(model: RoutedModel) -> None:
    together = model.score(PROMPTS[1], ["1 2 3", "a much longer wrong answer"])
    [alone] = model.score(PROMPTS[1], ["1 2 3"])
    assert together[0].log_likelihood == pytest.approx(alone.log_likelihood, abs=2e-3)


def test_scores_follow_the_querys_own_global_term(base_directory: Path, make_pool) -> None:
    pool = make_pool(base_directory, 3)
    low, high = (load(str(base_directory), pool.path, p=p).score(PROMPTS[0], ["yes"])[0] for p in (-1.0, 1.0))
    assert abs(low.log_likelihood - high.log_likelihood) > 0.01


def test_normalised_is_per_token() -> None:
    assert ChoiceScore("a", -6.0, 3).normalised == -2
