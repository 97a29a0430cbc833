"""Checkpoints of any other layout are refused with what is odd about them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.contribute.published_format import (
    open_checkpoint,
)
from glider.contribute.published_import import OfficialBase, import_checkpoint
from glider.errors import ExpertError

from .checkpoints import NAMES, Tensors, as_phatgoose, left_behind, save_glider, save_phatgoose


def drop(part: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[next(key for key in reversed(tensors) if part in key)]

    return change


def put(key: str, value: Any) -> Callable[[dict], None]:
    return lambda tensors: tensors.update({key: value})


Q = "base_model.model.encoder.block.0.layer.0.SelfAttention.q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("lora_gate"), "no gate"),
        (drop("lora_A"), "no LoRA factor A"),
        (drop("lora_B"), "no LoRA factor B"),
        (put(f"{Q}.lora_gate.default", torch.ones(31)), r"gate \(31,\)"),
        (put(f"{Q}.lora_A.default.weight", torch.ones(3, 32)), r"A \(3, 32\)"),
        (put(f"{Q}.lora_gate.default", torch.ones(32, dtype=torch.int64)), "int64"),
        (put(f"{Q}.lora_gate.default", torch.eye(32).to_sparse()), "sparse"),
        (put(f"{Q}.base_layer.weight", torch.ones(32, 32)), "base_layer"),
        (put(f"{Q}.lora_A.other.weight", torch.ones(2, 32)), "lora_A.other"),
        (put(f"{Q}._addons.expert_lora.layer1__x", torch.ones(2, 32)), "layer1__x"),
        (put("epoch", 3), "'epoch': int"),
    ],
)
def test_another_layout_is_refused(
    change: Callable[[dict], None], message: str, experts: list[Tensors], base: OfficialBase, tmp_path: Path
) -> None:
    """The fault is in the last expert, and the first ones leave nothing behind."""
    change(experts[2])
    directory = save_glider(experts, tmp_path / "glider", ("a", "b", "c"))
    with pytest.raises(ExpertError, match=message) as refused:
        import_checkpoint(open_checkpoint(directory), tmp_path / "pool", base)
    assert "c_best.pt" in str(refused.value)
    assert left_behind(tmp_path, "glider") == []


def test_a_missing_gate_in_one_file_of_all_is_refused(experts: list[Tensors], base: OfficialBase, tmp_path: Path):
    tensors = as_phatgoose(experts)
    del tensors["encoder.block.0.layer.0.SelfAttention.q._addons.router.expert_embeddings__1"]
    torch.save(tensors, tmp_path / "best.pt")
    with pytest.raises(ExpertError, match=r"gate at encoder.*SelfAttention.q of expert p3agnews") as refused:
        import_checkpoint(open_checkpoint(tmp_path / "best.pt", NAMES), tmp_path / "pool", base)
    assert "no gate" in str(refused.value)
    assert left_behind(tmp_path, "best.pt") == []


def test_a_number_left_out_is_refused(experts: list[Tensors], tmp_path: Path) -> None:
    tensors = {key.replace("__1", "__7"): value for key, value in as_phatgoose(experts).items()}
    torch.save(tensors, tmp_path / "best.pt")
    with pytest.raises(ExpertError, match="none numbered 1"):
        open_checkpoint(tmp_path / "best.pt", NAMES)


@pytest.mark.parametrize("order", [None, NAMES[:2], ("a", "a", "b"), ("a", "b", "../c"), ("a", "b", "")])
def test_an_order_that_does_not_fit_is_refused(order: Any, experts: list[Tensors], tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match="order"):
        open_checkpoint(save_phatgoose(experts, tmp_path / "best.pt"), order)


@pytest.mark.parametrize("order", [NAMES[:2], (*NAMES[:2], "p3sciq")])
def test_an_order_that_does_not_fit_the_files_is_refused(order: Any, experts: list[Tensors], tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match="order"):
        open_checkpoint(save_glider(experts, tmp_path / "glider"), order)
