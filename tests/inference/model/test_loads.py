"""What a model is loaded from: what does not fit is refused before the base is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.errors import BaseModelError, ExpertError, PoolError, RouterError
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.model import RoutedModel
from glider.inference.spec import load
from glider.layers.routed_linear import RoutedLinear
from glider.routing.methods.glider import Glider
from glider.routing.select import TopK

from .prompts import PROMPTS


def test_another_base_is_refused(llama_directory: Path, other_llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 1)
    with pytest.raises(BaseModelError, match=r"tiny-llama.*other-llama.*other weights"):
        load(str(other_llama_directory), pool.path)


def test_another_architecture_is_refused(llama_directory: Path, t5_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 1)
    with pytest.raises(BaseModelError, match="another architecture"):
        load(str(t5_directory), pool.path)


@pytest.fixture
def no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to load a base model fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the base model was loaded")

    monkeypatch.setattr("glider.inference.base_model.load_base", refuse)


@pytest.mark.parametrize(
    ("router", "setting", "error", "reason"),
    [
        ("gilder", {}, RouterError, "base, .*glider, .*phatgoose, .*single.*'gilder'"),
        ("single:nobody", {}, PoolError, "e0, e1.*'nobody'"),
        ("single", {}, RouterError, "single:NAME"),
        ("glider", {"temper": 2}, RouterError, "beta, gamma, global, local, .*, top_p; got temper for glider"),
        ("base", {"p": 0.5}, RouterError, "settings of abstain; got p for base"),
        (Glider(), {"p": 0.5}, RouterError, "p beside it"),
    ],
    ids=["unknown", "unknown expert", "no argument", "unknown setting", "setting of the base", "beside a router"],
)
def test_a_router_that_cannot_be_made_is_refused_before_the_base_is_loaded(
    llama_directory: Path, make_pool, request, router: Any, setting: dict, error: type[Exception], reason: str
) -> None:
    pool = make_pool(llama_directory, 2)
    request.getfixturevalue("no_base")
    with pytest.raises(error, match=reason):
        load(str(llama_directory), pool.path, router=router, **setting)


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ({"gates": False}, "gate at every site .*e0, e1"),
        ({"embedder": None}, "instruction embedding .*e0, e1.*`glider pool calibrate`"),
    ],
    ids=["gates", "instructions"],
)
def test_a_pool_that_cannot_serve_glider_is_refused_before_the_base_is_loaded(
    llama_directory: Path, make_pool, request, lacking: dict, reason: str
) -> None:
    pool = make_pool(llama_directory, 2, **lacking)
    request.getfixturevalue("no_base")
    with pytest.raises(RouterError, match=reason):
        load(str(llama_directory), pool.path)


def test_a_changed_file_is_refused_before_the_base_is_loaded(llama_directory: Path, make_pool, request) -> None:
    pool = make_pool(llama_directory, 2)
    file = pool.path / "e1" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    request.getfixturevalue("no_base")
    with pytest.raises(ExpertError, match=r"adapter_model\.safetensors of expert e1"):
        load(str(llama_directory), pool.path)


def pool_of_two_formats(directory: Path, make_pool) -> Pool:
    pool = make_pool(directory, 2)
    pool = pool.remove("e1")
    card = pool.path / "e1" / "card.json"
    content = json.loads(card.read_text())
    card.write_text(json.dumps({**content, "prompt": {"kind": "plain"}}))
    return pool.add("e1")


def test_experts_of_two_prompt_formats_need_a_choice(llama_directory: Path, make_pool) -> None:
    pool = pool_of_two_formats(llama_directory, make_pool)
    with pytest.raises(PoolError, match=r"one prompt format.*chat.*plain.*prompt="):
        load(str(llama_directory), pool.path)
    model = load(str(llama_directory), pool.path, prompt=PromptFormat(kind="plain"))
    tokens, _ = model.trace("hi")
    assert "".join(tokens) == "hi\n"


def test_the_prompt_format_is_the_pools(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 1)
    tokens, _ = load(str(llama_directory), pool.path).trace("hi")
    assert "".join(tokens) == "<u>hi</u><a>"


def test_a_router_object_and_a_name_with_settings_are_the_same(llama_directory: Path, make_pool) -> None:
    path = make_pool(llama_directory, 2).path
    assert load(str(llama_directory), path, router=Glider(TopK(1), p=0.5)).router == (
        load(str(llama_directory), path, select=TopK(1), p=0.5).router
    )


def test_single_is_that_expert_and_its_name_alone(base_directory: Path, make_pool) -> None:
    model = load(str(base_directory), make_pool(base_directory, 3).path, router="single:e1")
    [answer] = model.generate(PROMPTS[:1], max_new_tokens=3, trace=True)
    assert model.experts == ["e1"]
    assert answer.usage == pytest.approx({"e1": 1})


def test_detach_gives_back_the_bare_model(model: RoutedModel) -> None:
    bare = model.detach()
    assert bare is model.model
    assert not any(isinstance(module, RoutedLinear) for module in bare.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_loads_in_the_asked_dtype(base_directory: Path, make_pool, dtype: torch.dtype) -> None:
    path = make_pool(base_directory, 2).path
    model = load(str(base_directory), path, dtype=dtype, expert_dtype=torch.bfloat16)
    assert model.model.lm_head.weight.dtype == dtype
    assert len(model.generate(PROMPTS, max_new_tokens=3)) == 3
    assert all(torch.isfinite(torch.tensor(s.log_likelihood)) for s in model.score(PROMPTS[0], ["a", "bc"]))
