"""What rows share is computed once, and nothing changes by it."""

from pathlib import Path

import pytest
import torch

from glider.contribute import targets
from glider.contribute.examples import EncodedRow
from glider.contribute.lora import add_lora, lora_parameters
from glider.errors import ConfigError
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


def test_a_batch_without_padding_has_the_positions_of_the_model_itself() -> None:
    """RoBERTa's begin beyond its padding token: rows of one length were trained at others than they are used at."""
    from transformers import RobertaConfig, RobertaForCausalLM

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=1, is_decoder=True, initializer_range=0.3,
    )  # fmt: skip
    model = RobertaForCausalLM(config).eval()
    rows = [EncodedRow([30, 31, 32, 33 + i], [7 + i, 9]) for i in range(2)] + [EncodedRow([40], [3])]
    with torch.no_grad():
        logits, _ = targets.target_logits(model, rows, 1, torch.device("cpu"))
        for row, found in zip(rows, logits, strict=True):
            plain = model(input_ids=torch.tensor([row.prompt + row.target])).logits[0, len(row.prompt) - 1 : -1]
            torch.testing.assert_close(found[: len(row.target)], plain, atol=1e-4, rtol=1e-4)


def test_layers_that_peft_does_not_adapt_are_named_with_those_that_it_does() -> None:
    """A Mamba's `out_proj` ended training in a `ValueError` of PEFT's."""
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ConfigError, match=r"got .*out_proj.*Name others by --sites dt_proj,in_proj,x_proj\."):
        add_lora(model, 2, 2.0, "all-linear", 0)


def test_experts_inside_moe_blocks_are_refused_before_training() -> None:
    """PEFT adds them to `all-linear`; the adapter was refused when it had been trained."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=2, **sizes))
    with pytest.raises(ConfigError, match=r"MoE.*Name others by --sites k_proj,o_proj,q_proj,v_proj\."):
        add_lora(model, 2, 2.0, "all-linear", 0)
