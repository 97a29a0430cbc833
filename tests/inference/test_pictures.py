"""Models of images and text: pictures reach the transformers model inside, and its layers stay routed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from glider.contribute.adopt import import_adapter
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import load_base
from glider.inference.model import RoutedModel
from glider.inference.spec import load

from ..conftest import byte_tokenizer
from ..families.sweep import tiny

FAMILIES = ("qwen2_vl", "smolvlm", "gemma3")
IMAGE = 250  # the token that stands for a part of a picture
TARGETS = {"text": r".*(language_model|text_model).*\.(q_proj|v_proj|up_proj)", "everything": "all-linear"}


def prompt_with_picture(family: str, seed: int) -> dict[str, torch.Tensor]:
    """A prompt of a picture of 16 by 16, four tokens of it, and some text."""
    draw = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 240, (1, 6), generator=draw)
    ids = torch.cat([text[:, :2], torch.full((1, 4), IMAGE), text[:, 2:]], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family == "qwen2_vl":
        kinds = (ids == IMAGE).int()
        pixels = {"pixel_values": torch.randn(16, 96, generator=draw), "image_grid_thw": torch.tensor([[1, 4, 4]])}
        return {**inputs, **pixels, "mm_token_type_ids": kinds}
    one = (1, 1, 3, 16, 16) if family == "smolvlm" else (1, 3, 16, 16)
    return {**inputs, "pixel_values": torch.randn(one, generator=draw)}


@pytest.fixture(scope="module", params=[f"{family}-{part}" for family in FAMILIES for part in TARGETS])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family, and a directory with a base of it, two adapters of PEFT and a pool of them."""
    family, part = request.param.split("-")
    root = tmp_path_factory.mktemp(request.param)
    tiny(family, "image-text").save_pretrained(root / "base")
    byte_tokenizer(chat=False).save_pretrained(root / "base")
    pool = Pool.create(root / "pool", load_base(str(root / "base")).identity)
    for seed, name in enumerate(("one", "two")):
        settings = LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS[part], task_type="CAUSAL_LM")
        peft = get_peft_model(load_base(str(root / "base")).model, settings)
        draw = torch.Generator().manual_seed(seed)
        for title, value in peft.named_parameters():
            if "lora_" in title:
                value.data = 0.5 * torch.randn(value.shape, generator=draw) / value.shape[-1] ** 0.5
        peft.save_pretrained(str(root / name), save_embedding_layers=False)
        import_adapter(root / name, str(root / "base"), pool.path / name)
        pool = pool.add(name)
    return family, root


def routed_model(root: Path, router: str) -> RoutedModel:
    return load(str(root / "base"), root / "pool", router=router, prompt=PromptFormat(kind="raw"))


@torch.no_grad()
def by_peft(root: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    model: Any = PeftModel.from_pretrained(load_base(str(root / "base")).model, str(root / "one")).eval()
    return model(**inputs).logits


def test_a_picture_is_answered_as_by_peft(place: tuple[str, Path]) -> None:
    family, root = place
    model = routed_model(root, "single:one")
    for seed in (1, 2):
        inputs = prompt_with_picture(family, seed)
        expected = by_peft(root, inputs)
        with torch.no_grad():
            torch.testing.assert_close(model.model(**inputs).logits, expected, rtol=1e-3, atol=1e-3)
            with model.routing("what is it"):
                torch.testing.assert_close(model.model(**inputs).logits, expected, rtol=1e-3, atol=1e-3)
    text = {name: inputs[name][:, 6:] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(model.model(**text).logits, by_peft(root, text), rtol=1e-3, atol=1e-3)


def test_a_picture_changes_what_is_written_token_by_token(place: tuple[str, Path]) -> None:
    """The cache of a prompt with a picture gives what the whole text gives, routed token by token."""
    family, root = place
    model, inputs = routed_model(root, "arrow"), prompt_with_picture(family, 1)
    with torch.no_grad():
        written = model.model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        other = model.model(**{**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}).logits
        whole = {**inputs, "input_ids": written, "attention_mask": torch.ones_like(written)}
        if "mm_token_type_ids" in inputs:
            whole["mm_token_type_ids"] = (written == IMAGE).int()
        with model.routing("x"):
            logits = model.model(**whole).logits
    assert logits[0, 9:-1].argmax(-1).tolist() == written[0, 10:].tolist()
    assert not torch.allclose(other, logits[:, :10], atol=1e-3)
