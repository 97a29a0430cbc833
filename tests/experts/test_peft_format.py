"""PEFT's adapter settings, read without PEFT: the same scaling, and a refusal of all that is not plain LoRA."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from glider.errors import ExpertError
from glider.experts.peft_format import LoraLayout, base_name, parse_key, read_layout
from glider.inference.base_model import load_base

PATTERNS: list[tuple[dict[str, int], dict[str, float]]] = [
    ({}, {}),
    ({"q_proj": 2}, {"q_proj": 32}),
    ({"proj": 2}, {"_proj": 32}),
    ({r"model\.layers\.0\.self_attn\.q_proj": 3}, {r"layers\.1\..*": 5}),
    ({r"^model\.layers\.1\.mlp\.up_proj": 8, "up_proj": 1}, {"gate_proj|down_proj": 0.5}),
    ({"up_proj": 1, r"^model\.layers\.1\.mlp\.up_proj": 8}, {r".*\.self_attn\.[qk]_proj": 7}),
]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
    config.save_pretrained(str(tmp_path))
    return json.loads((tmp_path / "adapter_config.json").read_text("utf8"))


def read(directory: Path, settings: Any) -> LoraLayout:
    (directory / "adapter_config.json").write_text(json.dumps(settings), "utf8")
    return read_layout(directory)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("ranks", "alphas"), PATTERNS)
def test_scaling_is_that_of_peft_at_every_site(
    llama_directory: Path, tmp_path: Path, ranks: dict[str, int], alphas: dict[str, float], rslora: bool
):
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules="all-linear",
        rank_pattern=ranks,
        alpha_pattern=alphas,  # pyright: ignore[reportArgumentType]
        use_rslora=rslora,
        task_type="CAUSAL_LM",
    )
    config.save_pretrained(str(tmp_path))
    saved = LoraConfig.from_pretrained(str(tmp_path))  # saving sorts the patterns, and the first match counts
    peft_model = get_peft_model(load_base(str(llama_directory)).model, saved)
    layout = read_layout(tmp_path)
    scalings = {
        name.removeprefix("base_model.model."): module.scaling["default"]
        for name, module in peft_model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert len(scalings) == 14
    assert {site: layout.scaling(site) for site in scalings} == pytest.approx(scalings)


def test_settings_as_peft_saves_them_are_accepted(tmp_path: Path, settings: dict[str, Any]):
    assert read(tmp_path, settings) == LoraLayout(4, 8, {}, {}, False)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("trainable_token_indices", [1]),
        ("layer_replication", [[0, 1]]),
        ("target_parameters", ["mlp.experts"]),
        ("alora_invocation_tokens", [5, 6]),
        ("use_qalora", True),
        ("use_bdlora", {"target_modules_bd_a": ["q_proj"]}),
        ("kasa_config", {"beta": 1e-4}),
        ("monteclora_config", {"num_samples": 8}),
        ("velora_config", {"num_groups": 32}),
        ("arrow_config", {"top_k": 3}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "OLoRA"),
    ],
)
def test_all_but_plain_lora_is_refused(tmp_path: Path, settings: dict[str, Any], setting: str, value: Any):
    """PEFT would compute something else than B A x with these, or on a base that it changes while loading."""
    with pytest.raises(ExpertError, match=setting) as raised:
        read(tmp_path, {**settings, setting: value})
    assert str(tmp_path / "adapter_config.json") in str(raised.value)


def test_every_variant_that_peft_knows_is_refused(tmp_path: Path, settings: dict[str, Any]):
    """A variant that a newer PEFT adds must not pass for plain LoRA."""
    variants = [field.name for field in fields(LoraConfig) if field.metadata.get("is_lora_variant")]
    assert {"use_dora", "kasa_config"} <= set(variants)
    for variant in variants:
        assert not settings.get(variant)
        with pytest.raises(ExpertError, match=variant):
            read(tmp_path, {**settings, variant: {"x": 1}})


@pytest.mark.parametrize("init", [True, False, "gaussian"])
def test_initial_weights_that_leave_the_base_alone_are_accepted(
    tmp_path: Path, settings: dict[str, Any], init: bool | str
):
    assert read(tmp_path, {**settings, "init_lora_weights": init}).rank == 4


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"},
        {"peft_type": None},
        {"r": 0},
        {"r": None},
        {"r": "4"},
        {"lora_alpha": None},
        {"lora_alpha": float("nan")},
        {"lora_alpha": float("inf")},
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": ["q_proj"]},
        {"rank_pattern": {"(q_proj": 2}},
        {"alpha_pattern": {"q_proj": "much"}},
    ],
    ids=str,
)
def test_settings_without_a_meaning_are_refused(tmp_path: Path, settings: dict[str, Any], change: dict[str, Any]):
    with pytest.raises(ExpertError) as raised:
        read(tmp_path, {**settings, **change})
    assert str(tmp_path / "adapter_config.json") in str(raised.value)


@pytest.mark.parametrize("content", ["[]", '"LORA"', "3", "null"])
def test_json_that_is_no_object_is_refused(tmp_path: Path, content: str):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ExpertError, match=r"adapter_config\.json"):
        read_layout(tmp_path)


@given(site=st.from_regex(r"[a-z_0-9]+(\.[a-z_0-9]+){0,5}", fullmatch=True), factor=st.sampled_from("AB"))
def test_a_tensor_name_gives_back_its_site(site: str, factor: str):
    assert parse_key(f"base_model.model.{site}.lora_{factor}.weight") == (site, factor)


@pytest.mark.parametrize(
    "key",
    [
        "model.q.lora_A.weight",
        "base_model.model.q.lora_A.default.weight",
        "base_model.model.q.lora_C.weight",
        "base_model.model.q.lora_A.bias",
        "base_model.model.q.weight",
        "base_model.model..lora_embedding_A",
    ],
)
def test_other_tensor_names_are_no_factors(key: str):
    assert parse_key(key) is None


@pytest.mark.parametrize(
    ("content", "why"), [('{"r": 1e400}', "the number 1e400"), ("{}", "got none"), ("[]", "got none")]
)
def test_settings_that_name_no_base_say_why(tmp_path: Path, content: str, why: str) -> None:
    """It was `got UnfitFile`."""
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ExpertError, match=f"base model's name in .*{why}"):
        base_name(tmp_path)
