"""Mean activations against a direct computation without pads, and left in a model as gates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from glider.contribute.examples import EncodedRow, collate
from glider.contribute.mean_gates import mean_gates
from glider.errors import DataError
from glider.experts.expert import write_expert
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel, load_base
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.scores import standardise

ROWS = [EncodedRow([40, 71, 99, 5], [200, 1]), EncodedRow([8], [150, 31, 62, 1]), EncodedRow([9, 9, 30, 7, 5, 6], [1])]


def linear_names(base: BaseModel) -> list[str]:
    return [n for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]


@torch.no_grad()
def direct_means(base: BaseModel, sites: list[str]) -> dict[str, torch.Tensor]:
    """From one padded batch, the inputs seen by hooks with the pads masked out."""
    model, encoder_decoder = base.model, base.model.config.is_encoder_decoder
    batch = collate(ROWS, 0, encoder_decoder)
    targets = batch.pop("labels") != -100
    if encoder_decoder:
        shifted = torch.zeros_like(targets, dtype=torch.long)
        for row, encoded in zip(shifted, ROWS, strict=True):
            row[1 : len(encoded.target)] = torch.tensor(encoded.target[:-1])
        batch["decoder_input_ids"] = shifted
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(site).register_forward_hook(lambda _, x, y, site=site: seen.update({site: x[0]}))
        for site in sites
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    masks = {site: batch["attention_mask"].bool() for site in sites}
    for site in sites:
        sees_answer = site.startswith("decoder") and not ("EncDecAttention" in site and site[-1] in "kv")
        if sees_answer:
            masks[site] = targets
    return {site: seen[site][masks[site]].mean(dim=0) for site in sites}


def test_gates_are_the_mean_inputs_without_pads(base_directory: Path) -> None:
    base = load_base(str(base_directory))
    sites = linear_names(base)
    got, wanted = mean_gates(base, ROWS, sites), direct_means(base, sites)
    assert got.keys() == wanted.keys()
    for site in sites:
        torch.testing.assert_close(got[site], wanted[site], atol=1e-4, rtol=1e-4)


def test_only_the_sites_asked_for_and_the_model_as_before(llama_directory: Path) -> None:
    base = load_base(str(llama_directory))
    base.model.train()
    site = "model.layers.1.mlp.down_proj"
    gates = mean_gates(base, ROWS, [site])
    assert list(gates) == [site] and gates[site].shape == (48,) and gates[site].dtype == torch.float32
    assert base.model.training
    assert not any(module._forward_pre_hooks for module in base.model.modules())


def test_a_failure_leaves_no_hook(llama_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(llama_directory))

    def fail(*_: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr("glider.contribute.mean_gates.collate", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        mean_gates(base, ROWS, linear_names(base))
    assert not any(module._forward_pre_hooks for module in base.model.modules())


def test_stored_in_an_expert_they_route_as_trained_ones(llama_directory: Path, tmp_path: Path, random_expert) -> None:
    base = load_base(str(llama_directory))
    site = "model.layers.1.mlp.down_proj"
    made = random_expert(tmp_path / "made", base, sites=[site])
    gates = mean_gates(base, ROWS, made.sites)
    config = LoraConfig.from_pretrained(str(made.directory))
    a, b = made.factors(site)
    lora = {f"base_model.model.{site}.lora_A.weight": a, f"base_model.model.{site}.lora_B.weight": b}
    card = made.card.model_copy(update={"name": "e0"})
    write_expert(tmp_path / "pool" / "e0", card, config, lora, gates, None, torch.float32)
    pool = Pool.create(tmp_path / "pool", base.identity).add("e0")
    vectors = Phatgoose().prepare(pool).sites[site]["gates"]
    torch.testing.assert_close(vectors, standardise(gates[site])[None])


def test_no_rows_are_refused(llama_directory: Path) -> None:
    with pytest.raises(DataError, match="rows to take the mean over"):
        mean_gates(load_base(str(llama_directory)), [], ["model.layers.1.mlp.down_proj"])
