"""What rows share is computed once, and nothing changes by it."""

from pathlib import Path

import pytest
import torch

from glider.contribute import targets
from glider.contribute.examples import EncodedRow
from glider.contribute.lora import add_lora, lora_parameters
from glider.inference.base_model import load_base

PREFIX = list(range(20, 40))
ROWS = [
    EncodedRow([*PREFIX, 50, 51, 52], [7, 1]),
    EncodedRow([*PREFIX, 60], [9, 8, 1]),
    EncodedRow([*PREFIX, 70, 71, 72, 73, 74], [5, 1]),
]


def logits_and_gradients(directory: Path, rows: list[EncodedRow], shortest: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(targets, "_SHORTEST_PREFIX", shortest)
    model = add_lora(load_base(str(directory)).model, 3, 3.0, "all-linear", 0)
    with torch.no_grad():
        for name, value in lora_parameters(model).items():
            if "lora_B" in name:
                value.copy_(torch.sin(torch.arange(value.numel())).view_as(value) / 4)
    logits, labels = targets.target_logits(model, rows, 0, torch.device("cpu"))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    loss.backward()
    return logits.detach(), labels, {name: value.grad for name, value in lora_parameters(model).items()}


def test_sharing_the_prefix_changes_neither_logits_nor_gradients(llama_directory: Path, monkeypatch) -> None:
    shared = logits_and_gradients(llama_directory, ROWS, 8, monkeypatch)
    apart = logits_and_gradients(llama_directory, ROWS, 1000, monkeypatch)
    assert torch.equal(shared[1], apart[1])
    counted = shared[1] != -100
    torch.testing.assert_close(shared[0][counted], apart[0][counted], atol=1e-4, rtol=1e-4)
    for name, gradient in shared[2].items():
        torch.testing.assert_close(gradient, apart[2][name], atol=1e-4, rtol=1e-3)


def test_prefix_stops_before_the_token_that_predicts_the_target() -> None:
    assert targets._shared_prefix(ROWS) == PREFIX
    assert targets._shared_prefix([ROWS[0], ROWS[0]]) == [*PREFIX, 50, 51]
    assert targets._shared_prefix([EncodedRow([1, 2], [3]), EncodedRow([4, 5], [3])]) == []


def test_the_shared_prefix_runs_once(llama_directory: Path) -> None:
    model = load_base(str(llama_directory)).model
    targets.target_logits(model, ROWS, 0, torch.device("cpu"))  # what the model may share is tried
    widths = []
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: widths.append(output.shape[:2]))
    targets.target_logits(model, ROWS, 0, torch.device("cpu"))
    assert widths[0] == (1, len(PREFIX))
    assert widths[1][0] == len(ROWS) and widths[1][1] == max(len(row) - len(PREFIX) for row in ROWS)
