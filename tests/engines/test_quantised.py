"""A base of quantised weights: experts are added to what its layers give."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glider.inference.queries import Query
from glider.inference.spec import load

from .conftest import needs_vllm, opened

pytestmark = [*needs_vllm, pytest.mark.slow]
GROUP = 32
PROMPTS = [
    "sort 3 1 2",
    "What is the capital of France?",
    "a film " * 20,
    "ok",
    "Shares fell on Monday.",
    "He left. He went.",
]


def packed(values: torch.Tensor) -> torch.Tensor:
    """Numbers of four bits, eight of a column to an int32."""
    eights = values.view(-1, 8, values.shape[1]).long()
    whole = (eights << (4 * torch.arange(8))[None, :, None]).sum(dim=1)
    return torch.where(whole >= 1 << 31, whole - (1 << 32), whole).int()


def four_bits(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """GPTQ's tensors of a linear layer (O, I) by rounding, and the weight that they stand for."""
    groups = weight.float().T.reshape(-1, GROUP, weight.shape[0])
    scales = (groups.abs().amax(dim=1, keepdim=True) / 7).bfloat16().float()
    steps = (groups / scales).round().clamp(-8, 7)
    tensors = {
        "qweight": packed((steps + 8).reshape(-1, weight.shape[0])),
        "qzeros": torch.full((len(groups), weight.shape[0] // 8), 0x77777777, dtype=torch.int32),
        "scales": scales[:, 0].bfloat16(),
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
    }
    return tensors, (steps * scales).reshape(-1, weight.shape[0]).T.contiguous()


def four_bits_by_columns(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """AWQ's tensors of the same numbers: eight of a row to an int32, in its own order."""
    tensors, same = four_bits(weight)
    steps = (same.T.reshape(-1, GROUP, weight.shape[0]) / tensors["scales"].float()[:, None]).round() + 8
    ordered = steps.reshape(weight.shape[1], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(weight.shape[1], -1)
    zeros = torch.full(tensors["qzeros"].shape, 0x88888888 - (1 << 32), dtype=torch.int32)
    return {"qweight": packed(ordered.T).T.contiguous(), "qzeros": zeros, "scales": tensors["scales"]}, same


def eight_bits(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors of compressed-tensors, whose inputs are rounded to eight bits as well, and the weight."""
    scales = weight.float().abs().amax(dim=1, keepdim=True) / 127
    steps = (weight.float() / scales).round()
    return {"weight": steps.to(torch.int8), "weight_scale": scales}, steps * scales


_EIGHT = {"num_bits": 8, "type": "int", "symmetric": True}
_WEIGHTS, _INPUTS = {"strategy": "channel", "dynamic": False}, {"strategy": "token", "dynamic": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "auto_gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "all": {"targets": ["Linear"], "weights": _EIGHT | _WEIGHTS, "input_activations": _EIGHT | _INPUTS}
        },
    },
}


FORMS = {"auto_gptq": four_bits, "awq": four_bits_by_columns, "compressed-tensors": eight_bits}


def bases(name: str, wide_llama: Path, directory: Path) -> tuple[Path, Path]:
    """A base whose linear layers are quantised, and one of the same values in plain weights."""
    quantised, plain = directory / "quantised", directory / "plain"
    shutil.copytree(wide_llama, quantised)
    shutil.copytree(wide_llama, plain)
    stored, same = {}, {}
    for key, weight in load_file(wide_llama / "model.safetensors").items():
        stored[key] = same[key] = weight
        if key.endswith("proj.weight"):
            del stored[key]
            tensors, same[key] = FORMS[name](weight)
            stored |= {f"{key.removesuffix('weight')}{part}": tensor for part, tensor in tensors.items()}
    save_file(stored, quantised / "model.safetensors", {"format": "pt"})
    save_file(same, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = SETTINGS[name]
    (quantised / "config.json").write_text(json.dumps(config))
    return quantised, plain


@pytest.mark.parametrize("name", SETTINGS)
def test_experts_are_added_to_what_quantised_layers_give(
    name: str, wide_llama: Path, make_pool: Callable[..., Any], tmp_path: Path
) -> None:
    """Routed answers differ from the library's on the same values by little more than bare ones do."""
    quantised, plain = bases(name, wide_llama, tmp_path)
    pool = str(make_pool(plain, profile=True).path)
    settings: dict[str, Any] = {"abstain": False, "dtype": "bfloat16"}
    with opened(pool, base=str(quantised), **settings) as model:
        assert model.llm.llm_engine.vllm_config.model_config.quantization == name
        routed, bare = scores_of(model, None), scores_of(model, "base")
    library = load(str(plain), pool, **settings)
    differences = [
        float((got - scores_of(library, verdict)).abs().mean()) for got, verdict in ((routed, None), (bare, "base"))
    ]
    print(f"{name}: mean difference of a log-likelihood, routed and bare: {differences}")
    assert differences[0] < 2 * differences[1]
    assert (routed - bare).abs().mean() > 5 * differences[0]


def scores_of(model: Any, verdict: Any) -> torch.Tensor:
    """Log-likelihoods of two answers to each prompt."""
    queries = [Query(text, verdict=verdict) for text in PROMPTS]
    scores, _ = model.score_many(queries, [["yes", "no"]] * len(queries))
    return torch.tensor([[score.log_likelihood for score in row] for row in scores])
