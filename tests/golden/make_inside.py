"""Makes `inside.safetensors` of ../shared/golden/official_layout: what a clone has without that directory.

    python tests/golden/make_inside.py

The whole (4.5 MB) is a tiny random T5 and eight random experts, with what the published GLIDER code computed for them
(UNITES-Lab/glider, unmodified, on the CPU in float32). Kept are the encoder, its experts and all nine cases' scores at
its seven sites, and the scores at the decoder's two that read the encoder's output (its keys and values): a score at
one site depends on what routed experts did at all before it. Left out are the decoder's own sites, so logits and
generated tokens. No text or data of a task is in either.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
WHOLE = HERE.parents[2] / "shared" / "golden" / "official_layout"
PREFIX = "base_model.model."
EMBEDDINGS = "gpt-generated-instruction-nomic-embeddings/{}/checkpoints/nomic_instruction_embedding.pt"
READS_ENCODER = tuple(f"decoder.block.0.layer.1.EncDecAttention.{part}" for part in "kv")


def main() -> None:
    cases = json.loads((WHOLE / "cases.json").read_text("utf8"))
    tensors = {f"inputs.{name}": tensor for name, tensor in load_file(WHOLE / "inputs.safetensors").items()}
    del tensors["inputs.base_logits"]
    for name, tensor in read("base_t5_state_dict.pt").items():
        if name == "shared.weight" or (name.startswith("encoder.") and "embed_tokens" not in name):
            tensors[f"base.{name}"] = tensor
    for expert in cases["expert_order"]:
        for name, tensor in read(f"p3-lora-checkpoints/{expert}_best.pt").items():
            site, _, part = name.removeprefix(PREFIX).partition(".lora_")
            gate_of_a_reader = part.startswith("gate") and site in READS_ENCODER
            if gate_of_a_reader or (site.startswith("encoder.") and part):
                tensors[f"experts.{expert}.{site}.lora_{part}"] = tensor
    asked = {case["query"] for case in cases["cases"].values()}
    for version in ("t0-v3", "t0-v4"):
        for task, vector in read(EMBEDDINGS.format(version)).items():
            if version == "t0-v3" or task in asked:
                tensors[f"{version}.{task}"] = vector
    for case in cases["cases"]:
        for name, tensor in load_file(WHOLE / f"{case}.safetensors").items():
            site = name.removeprefix("scores.").removeprefix(PREFIX)
            if name == "global_scores" or site.startswith("encoder.") or site in READS_ENCODER:
                tensors[f"cases.{case}.{name}"] = tensor
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    about = {"cases": json.dumps(cases), "config": (WHOLE / "base_t5" / "config.json").read_text("utf8")}
    save_file(tensors, HERE / "inside.safetensors", about)


def read(file: str) -> dict[str, torch.Tensor]:
    return torch.load(WHOLE / file, weights_only=True)


if __name__ == "__main__":
    main()
