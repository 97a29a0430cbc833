"""Arguments, settings and versions of an engine that would not be right are refused before it starts."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glider.engines.vllm import contract
from glider.engines.vllm.arguments import command_line, engine_arguments, plugin_settings
from glider.engines.vllm.offline import Requests
from glider.engines.vllm.refusals import faults
from glider.engines.vllm.settings import PluginSettings
from glider.errors import ConfigError, EngineError, MissingDependency, QueryError, RouterError
from glider.inference.spec import ModelSpec


def test_the_command_line_is_words_that_no_shell_changes(tmp_path: Path, make_wide_pool: Any) -> None:
    pool = make_wide_pool(name="a pool")
    words = command_line(plugin_settings(ModelSpec(pool=str(pool.path), abstain=False), "route", name="pool"))
    line = " ".join(words)
    script = f"for word in $(cat {tmp_path}/line); do printf '%s\\n' \"$word\"; done"
    (tmp_path / "line").write_text(line)
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert words == told
    settings = json.loads(told[told.index("--additional-config") + 1])["glider"]
    assert settings["spec"]["pool"] == str(pool.path) and " " in settings["spec"]["pool"]


@pytest.mark.parametrize(
    "base", ["x --trust-remote-code", "--trust-remote-code", "*", "a\n--host", "[ab]", "a\x1b[31m", "a\\b"]
)
def test_a_pools_author_adds_no_argument_to_vllm_serve(make_wide_pool: Any, base: str) -> None:
    """The base's id stands among the served names: `vllm serve BASE $(glider vllm-args POOL)` splits it at spaces."""
    pool = make_wide_pool()
    file = pool.path / "pool.json"
    index = json.loads(file.read_text("utf8"))
    index["base"]["model_id"] = base
    file.write_text(json.dumps(index), "utf8")
    settings = plugin_settings(ModelSpec(pool=str(pool.path), abstain=False), "route")
    with pytest.raises(ConfigError, match="one word for a shell"):
        command_line(settings)


def test_a_served_name_is_one_word(make_wide_pool: Any) -> None:
    pool = make_wide_pool(name="a pool")
    settings = plugin_settings(ModelSpec(pool=str(pool.path), abstain=False), "route")
    with pytest.raises(ConfigError, match="Give --name"):
        command_line(settings)


def test_a_pool_that_changed_is_not_served_by_old_arguments(
    make_wide_pool: Any, grow_pool: Any, wide_llama: Path
) -> None:
    pool = make_wide_pool()
    settings = plugin_settings(ModelSpec(pool=str(pool.path), abstain=False), "route")
    settings.open_pool()
    grow_pool(pool, wide_llama, "more")
    with pytest.raises(EngineError, match="another state"):
        settings.open_pool()


def test_select_asks_for_lora_of_the_pools_rank() -> None:
    demo = engine_arguments(plugin_settings(ModelSpec(), "select"))
    assert demo["max_lora_rank"] == 8 and demo["max_loras"] == demo["max_cpu_loras"] == 8


@pytest.mark.parametrize(
    ("spec", "mode", "fault"),
    [
        ({"abstain": False}, "select", EngineError),
        ({"router": "phatgoose"}, "select", EngineError),
        ({"expert_memory": "1GB"}, "route", ConfigError),
        ({"router": "nobody"}, "route", RouterError),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_starts(spec: dict, mode: Any, fault: type) -> None:
    with pytest.raises(fault):
        plugin_settings(ModelSpec(**spec), mode)


def schemes(kind: str, bits: int) -> dict[str, Any]:
    """Settings of compressed-tensors' as vLLM keeps them."""
    return {"target_scheme_map": {"Linear": {"weights": SimpleNamespace(type=kind, num_bits=bits)}}}


def config(**changes: Any) -> Any:
    parts: dict[str, Any] = {
        "load_config": {"load_format": "glider"},
        "model_config": {"runner_type": "generate", "is_encoder_decoder": False, "is_multimodal_model": False},
        "lora_config": None,
        "device_config": {"device_type": "cpu"},
        "cache_config": {"kv_sharing_fast_prefill": False},
        "compilation_config": {"mode": 3},
        "parallel_config": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "use_ubatching": False},
    }
    for name, value in changes.items():
        parts[name] = {**(parts.get(name) or {}), **value}
    spaces = {name: value and SimpleNamespace(**value) for name, value in parts.items()}
    return SimpleNamespace(use_v2_model_runner=changes.pop("v2", None) is not None, **spaces)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"load_config": {"load_format": "auto"}}, "--load-format"),
        ({"model_config": {"runner_type": "pooling"}}, "generates"),
        ({"model_config": {"is_encoder_decoder": True}}, "decoder-only"),
        ({"model_config": {"is_multimodal_model": True}}, "language model"),
        ({"device_config": {"device_type": "cuda"}}, None),
        ({"device_config": {"device_type": "cuda"}, "v2": {}}, None),
        ({"v2": {}}, "V1 model runner"),
        ({"device_config": {"device_type": "xpu"}}, "a CPU or a GPU of NVIDIA's"),
        ({"speculative_config": {"enable_adaptive_verification": True}}, "as many tokens"),
        ({"parallel_config": {"tensor_parallel_size": 2}}, None),
        ({"parallel_config": {"pipeline_parallel_size": 2}}, None),
        ({"parallel_config": {"pipeline_parallel_size": 2}, "compilation_config": {"mode": 0}}, "compiled"),
        ({"parallel_config": {"data_parallel_size": 2}}, None),
        ({"parallel_config": {"decode_context_parallel_size": 2}}, "one worker"),
        ({"parallel_config": {"data_parallel_size": 2}, "device_config": {"device_type": "cuda"}}, "one worker"),
        ({"parallel_config": {"tensor_parallel_size": 2}, "device_config": {"device_type": "cuda"}}, "one worker"),
        ({"parallel_config": {"pipeline_parallel_size": 2}, "device_config": {"device_type": "cuda"}}, "one worker"),
        ({"parallel_config": {"use_ubatching": True}}, "whole batches"),
        ({"cache_config": {"kv_sharing_fast_prefill": True}}, "every token"),
        ({"model_config": {"quantization": "compressed-tensors"}}, None),
        ({"model_config": {"quantization": "fp8"}}, "plain weights"),
        ({"model_config": {"quantization": "auto_gptq"}, "quant_config": {"weight_bits": 4}}, None),
        ({"model_config": {"quantization": "auto_gptq"}, "quant_config": {"weight_bits": 8}}, "plain weights"),
        ({"model_config": {"quantization": "compressed-tensors"}, "quant_config": schemes("int", 8)}, None),
        ({"model_config": {"quantization": "compressed-tensors"}, "quant_config": schemes("int", 4)}, "plain weights"),
        (
            {"model_config": {"quantization": "compressed-tensors"}, "quant_config": schemes("float", 8)},
            "plain weights",
        ),
        ({"model_config": {"quantization": "auto_gptq"}, "device_config": {"device_type": "cuda"}}, "plain weights"),
        ({"lora_config": {"max_lora_rank": 8}}, None),
        ({"kv_transfer_config": {"kv_connector": "ExampleConnector"}}, "keeps conditions apart"),
        ({"kv_transfer_config": {"kv_connector": "OffloadingConnector"}}, None),
        ({"kv_transfer_config": {"kv_connector": None}}, None),
    ],
)
def test_engines_that_would_not_be_right_are_refused(changes: dict, told: str | None) -> None:
    settings = PluginSettings(mode="route", digest="0" * 64, name="demo", base="b")
    wanted = [fault[0] for fault in faults(config(**changes), settings)]
    assert wanted == [] if told is None else len(wanted) == 1 and told in wanted[0]


def test_select_needs_lora_of_the_experts_rank_and_runs_on_any_device() -> None:
    settings = plugin_settings(ModelSpec(), "select")
    (without,) = faults(config(), settings)
    assert "--enable-lora" in without[0]
    (low,) = faults(config(lora_config={"max_lora_rank": 1}), settings)
    assert "--max-lora-rank" in low[0]
    on_gpus = {"lora_config": {"max_lora_rank": 8}, "device_config": {"device_type": "cuda"}, "v2": {}}
    on_gpus["model_config"] = {"quantization": "fp8"}
    assert not list(faults(config(**on_gpus, parallel_config={"tensor_parallel_size": 4}), settings))


def test_the_rust_front_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    settings = PluginSettings(mode="route", digest="0" * 64, name="demo", base="b")
    assert [fault[0] for fault in faults(config(), settings)] == ["vLLM's Python front end"]


@pytest.mark.parametrize(
    ("version", "known"),
    [("0.31.2", False), ("0.32.0", True), ("0.32.0+cpu", True), ("0.33.4", True), ("0.34.0", False)],
)
def test_versions_that_the_plug_in_is_written_for(version: str, known: bool) -> None:
    assert contract.known(version) is known


def test_without_vllm_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "installed", lambda: None)
    with pytest.raises(MissingDependency, match=r"pip install 'glider-moe\[vllm\]'"):
        contract.require_vllm()


def test_a_name_that_is_gone_or_changed_is_told_with_the_versions_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "installed", lambda: "0.33.9")
    gone = contract.Touched("glider.errors", "NoSuchError")
    changed = contract.Touched("glider.errors", "GliderError.__init__", ("wanted", "price"))
    right = contract.Touched("glider.errors", "GliderError.__init__", ("wanted", "got"))
    with pytest.raises(EngineError) as fault:
        contract.require_contract((right, gone, changed))
    assert ">=0.32,<0.34" in str(fault.value) and "0.33.9" in str(fault.value)
    assert "NoSuchError" in str(fault.value) and "without price" in str(fault.value)
    contract.require_contract((right,))


@pytest.mark.parametrize(
    ("version", "variables", "runner", "route"),
    [
        (None, {}, None, None),
        ("0.32.0+cpu", {}, "V1", None),
        ("0.32.0+cpu", {"VLLM_USE_V2_MODEL_RUNNER": "1"}, "V2", "V2"),
        ("0.33.0", {"VLLM_USE_V2_MODEL_RUNNER": "0"}, "V1", None),
        ("0.40.0", {}, None, ">=0.32,<0.34"),
        ("0.32.0+cpu", {"VLLM_USE_RUST_FRONTEND": "1"}, "V1", "RUST"),
    ],
)
def test_the_doctor_says_what_would_be_refused(
    monkeypatch: pytest.MonkeyPatch, version: str | None, variables: dict, runner: str | None, route: str | None
) -> None:
    from glider.engines.vllm.diagnosis import diagnosis

    monkeypatch.setattr(contract, "installed", lambda: version)
    for name in ("VLLM_USE_V2_MODEL_RUNNER", "VLLM_USE_RUST_FRONTEND"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    told = diagnosis()
    assert (told["version"], told["runner"]) == (version, runner)
    if version is None:
        assert told["modes"] == {}
    elif route is None:
        assert told["modes"] == {"select": None, "route": None}
    else:
        assert route in told["modes"]["route"]


def test_prompts_for_an_engine_elsewhere_are_held_to_the_bases_tokens(make_wide_pool: Any, wide_llama: Path) -> None:
    """No model is here: how many tokens it knows stands in its settings."""
    requests = Requests.of_spec(ModelSpec(base=str(wide_llama), pool=str(make_wide_pool().path), abstain=False))
    (row,) = requests.encoder.rows(["hello"], False, 4)
    assert row and max(row) < requests.encoder.model.config.vocab_size
    requests.encoder.model.config.vocab_size = max(row)
    with pytest.raises(QueryError, match="which only its tokenizer knows"):
        requests.encoder.rows(["hello"], False, 4)
