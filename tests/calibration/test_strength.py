"""gamma and beta, chosen by the loss on rows."""

import pytest
import torch

from glider.calibration.strength import CONFIDENT, DOUBTFUL, _nearest_good, choose_constants
from glider.data.rows import Row
from glider.errors import RouterError
from glider.experts.pool import Calibration
from glider.inference.alpha_loss import alpha_loss
from glider.inference.spec import load
from glider.routing.condition import Condition


def rows(word: str) -> list[Row]:
    return [Row(input=f"the {word} {word}{i} and", output="yes") for i in range(5)]


@pytest.fixture
def model(pool_with_profiles, llama_directory):
    return load(str(llama_directory), pool_with_profiles().path, router="glider", global_="examples", abstain=False)


def test_constants_are_of_the_lowest_loss(model) -> None:
    given, ticks = {name: rows(name) for name in model.experts}, []
    calibration, loss = Calibration(p=0.5, source="profiles"), alpha_loss(model)
    stored = choose_constants(
        model.experts, loss, given, calibration, each=2, report=lambda done, of: ticks.append((done, of))
    )
    assert stored.p == 0.5 and stored.source.startswith("profiles; gamma and beta by the loss of 6 rows")
    assert stored.beta in DOUBTFUL and stored.gamma + stored.beta in CONFIDENT
    assert ticks[-1] == (6 * 10, 6 * 10)
    assert choose_constants(model.experts, loss, given, calibration, each=2) == stored  # drawn by seed


def test_a_loss_is_that_of_the_answer_at_this_alpha(model) -> None:
    row = rows("e1")[0]
    scores = model.condition([row.input]).global_scores
    for alpha in (0.3, 100.0):
        with model.attached.routing(Condition.of(scores, torch.tensor([alpha]))):
            prompt = model.prompt.prompt_ids(model.tokenizer, row.input)
            target = model.prompt.target_ids(model.tokenizer, row.output)
            logits = model.model(torch.tensor([prompt + target])).logits[0].float()
        wanted = torch.nn.functional.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(target)).item()
        assert alpha_loss(model)(row, alpha, None) == pytest.approx(wanted, rel=1e-4)


def test_an_expert_taken_out_is_not_chosen(model) -> None:
    row = rows("e1")[0]
    loss = alpha_loss(model)
    with_it, without = loss(row, 300.0, None), loss(row, 300.0, model.experts.index("e1"))
    assert with_it != pytest.approx(without)


def test_a_router_without_a_global_term_is_refused(pool_with_profiles, llama_directory) -> None:
    model = load(str(llama_directory), pool_with_profiles().path, router="phatgoose")
    with pytest.raises(RouterError, match="a router with a global term"):
        alpha_loss(model)


def test_the_stored_alpha_stays_unless_the_rows_speak_against_it() -> None:
    noise = [0.1, -0.1, 0.2, -0.2]
    alike = {3.0: [1 + n for n in noise], 100.0: [1.01 - n for n in noise]}
    assert _nearest_good(alike, 103) == 100
    clear = {3.0: [1.0] * 4, 10.0: [1.0] * 4, 100.0: [1.5 + n / 10 for n in noise]}
    assert _nearest_good(clear, 103) == 10
