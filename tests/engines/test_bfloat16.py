"""In bfloat16 two implementations of a base differ by its rounding; with a pool in them by less than twice that."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from glider.inference.model import RoutedModel
from glider.inference.spec import load
from glider.routing.condition import Condition

from .conftest import needs_vllm, opened
from .requests_of_three_kinds import KINDS, TEXTS, ask, rows_of

pytestmark = [*needs_vllm, pytest.mark.slow]
TOKENS = 12


@pytest.fixture(scope="module")
def library() -> RoutedModel:
    return load(abstain=False, dtype="bfloat16")


@pytest.fixture(scope="module")
def outputs(library: RoutedModel) -> Iterator[list[Any]]:
    with opened(abstain=False, dtype="bfloat16") as model:
        assert model.llm.llm_engine.vllm_config.model_config.dtype == torch.bfloat16
        yield ask(model, rows_of(library), TOKENS, prompt_logprobs=0, logprobs=1)


def likelihoods(library: RoutedModel, ids: list[int], condition: Condition) -> torch.Tensor:
    """Log-likelihoods (L - 1, V) of what follows each token but the last."""
    with torch.inference_mode(), library.attached.routing(condition):
        logits = library.model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return logits.float().log_softmax(dim=-1)


def conditions_of(library: RoutedModel) -> list[Condition]:
    terms = library.condition(list(TEXTS))
    each = [terms.rows([i]) for i in range(len(TEXTS))]
    return [*each, *[Condition.local(1)] * len(TEXTS), *[Condition.nobody(1)] * len(TEXTS)]


def test_likelihoods_differ_by_less_than_twice_the_bases(library: RoutedModel, outputs: list[Any]) -> None:
    """Of prompts and answers; and an answer's token that the library would not take is all but as likely there."""
    differences: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    shortfalls: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for place, (output, condition) in enumerate(zip(outputs, conditions_of(library), strict=True)):
        kind = KINDS[place // len(TEXTS)]
        prompt, answer = list(output.prompt_token_ids), list(output.outputs[0].token_ids)
        theirs = [row[token].logprob for token, row in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]
        theirs += [row[token].logprob for token, row in zip(answer, output.outputs[0].logprobs, strict=True)]
        ours = likelihoods(library, prompt + answer, condition)
        followers = torch.tensor((prompt + answer)[1:])
        chosen = ours.gather(1, followers[:, None])[:, 0]
        differences[kind].append((chosen - torch.tensor(theirs)).abs())
        shortfalls[kind] += (ours.amax(dim=1) - chosen)[len(prompt) - 1 :].tolist()
    mean = {kind: float(torch.cat(values).mean()) for kind, values in differences.items()}
    most = {kind: float(torch.cat(values).max()) for kind, values in differences.items()}
    ties = {kind: (sum(value > 0 for value in values), max(values)) for kind, values in shortfalls.items()}
    print(f"mean {mean}; largest {most}; tokens that were not the library's, and by how much less likely {ties}")
    for kind in ("term", "local"):
        assert mean[kind] < 2 * mean["bare"] and most[kind] < 1.0
        assert ties[kind][1] <= 0.25
