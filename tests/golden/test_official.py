"""The numbers of the published code, reproduced through this project's own layers.

The files are in the published layout, which the tests read by themselves here: what is tested is the routing. Those in
the repository are a part of what ../shared/golden holds and describes (`make_inside.py`); both are tested where both
are.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

from glider.layers.attach import Attached, Storage
from glider.layers.kernels.choice import KERNELS
from glider.layers.kernels.native import why_absent
from glider.layers.trace import Trace
from glider.routing.base import Prepared, Site
from glider.routing.condition import Condition
from glider.routing.methods.glider import Glider
from glider.routing.scores import cosine, standardise
from glider.routing.select import TopK, TopP
from glider.routing.static import MergedExpert

CASES = [
    *("phatgoose_top1", "phatgoose_top2", "phatgoose_top3"),
    *("phatgoose_topp0.25", "phatgoose_topp0.5", "phatgoose_topp0.75"),
    *("glider_s3", "glider_s100", "glider_heldout_s3"),
]
INTERPRETED = ("phatgoose_top1", "glider_s100")  # of the subset, where a program for the GPU takes minutes
CELLS = [
    pytest.param(place, name, kernel, marks=[pytest.mark.slow] if (place, kernel) == ("whole", "triton") else [])
    for place in ("inside", "whole")
    for name in CASES
    for kernel in KERNELS
    if kernel != "triton" or place == "whole" or name in INTERPRETED
]
TOLERANCE = 5e-5
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def experts(layout: Path) -> list[dict[str, torch.Tensor]]:
    order = json.loads((layout / "cases.json").read_text())["expert_order"]
    return [_read(layout / "p3-lora-checkpoints" / f"{name}_best.pt") for name in order]


@pytest.mark.parametrize(("layout", "name", "kernel"), CELLS, indirect=["layout"])
def test_golden_case(layout: Path, experts: list[dict[str, torch.Tensor]], name: str, kernel: str) -> None:
    if kernel == "native" and (absent := why_absent()):
        pytest.skip(f"no native kernel: {absent}")
    case = json.loads((layout / "cases.json").read_text())["cases"][name]
    wanted = load_file(layout / f"{name}.safetensors")
    inputs = load_file(layout / "inputs.safetensors")
    select = TopK(case["top_k"]) if case["top_k"] else TopP(case["top_p"])
    model, attached = _attach(layout, experts, Glider(select, p=0.8), kernel)
    condition = _condition(layout, case, wanted)
    encoder = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    trace = Trace([str(i) for i in range(8)], condition, encoder["attention_mask"].bool())
    with torch.inference_mode(), attached.routing(condition, recorder=trace):
        logits = model(**encoder, decoder_input_ids=inputs["decoder_input_ids"]).logits
    with torch.inference_mode(), attached.routing(condition):
        untraced = model(**encoder, decoder_input_ids=inputs["decoder_input_ids"]).logits

    assert set(trace.kernels) == {kernel}
    torch.testing.assert_close(untraced, logits, atol=TOLERANCE, rtol=0)
    if "logits" in wanted:  # the subset has no decoder
        torch.testing.assert_close(logits, wanted["logits"], atol=TOLERANCE, rtol=0)
        with torch.inference_mode(), attached.routing(condition):
            generated = model.generate(**encoder, max_length=8, do_sample=False)
        assert torch.equal(generated, wanted["generated"])
    scored = {call.site: call.decision.scores for call in trace.calls}
    compared = 0
    for key, expected in wanted.items():
        if key.startswith("scores."):
            got = scored[key.removeprefix("scores.").removeprefix(PREFIX)]
            torch.testing.assert_close(got.view(expected.shape), expected, atol=TOLERANCE, rtol=0)  # pyright: ignore
            compared += 1
    assert compared == len(attached.prepared.sites)


def test_base_logits(layout: Path, experts: list[dict[str, torch.Tensor]]) -> None:
    inputs = load_file(layout / "inputs.safetensors")
    model, attached = _attach(layout, experts, Glider(p=0.8))
    bare = T5ForConditionalGeneration(model.config).eval()
    bare.load_state_dict(_read(layout / "base_t5_state_dict.pt"))
    with torch.inference_mode():
        wanted = inputs.pop("base_logits") if "base_logits" in inputs else bare(**inputs).logits
    attached.detach()
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, wanted, atol=TOLERANCE, rtol=0)


def _read(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def _attach(
    layout: Path, experts: list[dict], router: Glider, kernel: str | None = None
) -> tuple[T5ForConditionalGeneration, Attached]:
    model = T5ForConditionalGeneration(T5Config.from_pretrained(layout / "base_t5")).eval()
    model.load_state_dict(_read(layout / "base_t5_state_dict.pt"))
    names = [key.removeprefix(PREFIX).removesuffix(".lora_gate.default") for key in experts[0] if "lora_gate" in key]
    sites = {name: _site(name, experts) for name in names}
    pairs = [{name: _pair(name, expert) for name in names} for expert in experts]
    merged = tuple(MergedExpert(f"e{i}", own) for i, own in enumerate(pairs))
    attached = Attached(model)
    attached.replace(router, Prepared(merged, sites), Storage(kernel=kernel))
    return model, attached


def _site(name: str, experts: list[dict]) -> Site:
    gates = [standardise(expert[f"{PREFIX}{name}.lora_gate.default"]) for expert in experts]
    return Site(name, torch.zeros(len(experts), dtype=torch.bool), {"gates": torch.stack(gates)})


def _pair(name: str, expert: dict) -> tuple[torch.Tensor, torch.Tensor]:
    return expert[f"{PREFIX}{name}.lora_A.default.weight"], expert[f"{PREFIX}{name}.lora_B.default.weight"] / 16


def _condition(layout: Path, case: dict, wanted: dict[str, torch.Tensor]) -> Condition | None:
    """One query for the whole batch, as the published code has it; alpha is set by hand there."""
    if case["query"] is None:
        return None
    folder = layout / "gpt-generated-instruction-nomic-embeddings"
    own = _read(folder / "t0-v3" / "checkpoints" / "nomic_instruction_embedding.pt")
    asked = _read(folder / "t0-v4" / "checkpoints" / "nomic_instruction_embedding.pt")
    experts = torch.nn.functional.normalize(torch.stack(list(own.values())), dim=-1)
    scores = cosine(asked[case["query"]][None], experts)
    torch.testing.assert_close(scores[0], wanted["global_scores"], atol=TOLERANCE, rtol=0)
    return Condition.of(scores, torch.tensor([case["alpha"]]))
