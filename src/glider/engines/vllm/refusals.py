"""What would not be right inside vLLM, refused before an engine starts."""

import os
from collections.abc import Iterator
from typing import Any

from glider.engines.vllm.settings import PluginSettings
from glider.errors import EngineError

_BY_BLOCK_HASH = ("OffloadingConnector", "SimpleCPUOffloadConnector")  # connectors; that hash has the salt in it

_QUANTISED = {"awq": "int4", "auto_gptq": "int4", "compressed-tensors": "int8"}  # what has been run, on a CPU
_SIZES = ("tensor", "pipeline", "data", "prefill_context", "decode_context")

Fault = tuple[str, str, str]
"""What was wanted, what was got, what to do."""


def require_right(vllm_config: Any, settings: PluginSettings) -> None:
    """Raise `EngineError` for the first setting of an engine under which a pool would not be served right."""
    for expected, got, remedy in faults(vllm_config, settings):
        raise EngineError(f"{expected} (--mode {settings.mode})", got, remedy)


def faults(vllm_config: Any, settings: PluginSettings) -> Iterator[Fault]:
    """All of them."""
    yield from _of_both(vllm_config, settings)
    yield from _of_select(vllm_config, settings) if settings.mode == "select" else _of_route(vllm_config)


def _of_both(config: Any, settings: PluginSettings) -> Iterator[Fault]:
    if config.load_config.load_format != "glider":
        yield "--load-format glider", config.load_config.load_format, "Take all of `glider vllm-args POOL`."
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0").lower() not in ("", "0", "false"):
        got = "VLLM_USE_RUST_FRONTEND, whose requests pass no Python"
        yield "vLLM's Python front end", got, "Unset VLLM_USE_RUST_FRONTEND."
    if config.model_config.runner_type != "generate":
        yield "a model that generates", f"the runner {config.model_config.runner_type}", "Serve it without a pool."
    if config.model_config.is_encoder_decoder:
        yield "a decoder-only model", "an encoder-decoder one", "Serve it by `glider serve`."
    yield from _of_transfer(config)


def _of_transfer(config: Any) -> Iterator[Fault]:
    transfer = getattr(config, "kv_transfer_config", None)
    connector = getattr(transfer, "kv_connector", None)
    if connector is not None and connector not in _BY_BLOCK_HASH:
        got = f"{connector}, which may know a prompt's keys and values by its tokens alone"
        yield "a cache that keeps conditions apart", got, f"Take one of {', '.join(_BY_BLOCK_HASH)}, or none."


def _of_select(config: Any, settings: PluginSettings) -> Iterator[Fault]:
    if config.lora_config is None:
        yield "--enable-lora", "an engine without LoRA", "Take all of `glider vllm-args POOL --mode select`."
        return
    ranks = [expert.sites[site].rank for expert in settings.open_pool() for site in expert.sites]
    if ranks and max(ranks) > config.lora_config.max_lora_rank:
        got = f"{config.lora_config.max_lora_rank}, and experts of rank {max(ranks)}"
        yield "--max-lora-rank of the experts", got, "Take all of `glider vllm-args POOL --mode select`."


def _of_route(config: Any) -> Iterator[Fault]:
    parallel = config.parallel_config
    select = "Serve it by --mode select, or by `glider serve`."
    if config.device_config.device_type not in ("cpu", "cuda"):
        got = f"{config.device_config.device_type}, where this mode has never been run"
        yield "vLLM on a CPU or a GPU of NVIDIA's", got, select
    if config.use_v2_model_runner and config.device_config.device_type == "cpu":
        yield "vLLM's V1 model runner on a CPU", "V2", "Set VLLM_USE_V2_MODEL_RUNNER=0."
    if getattr(getattr(config, "speculative_config", None), "enable_adaptive_verification", False):
        got = "adaptive verification, which counts a request's tokens on the device"
        yield "as many tokens of each request as are scheduled", got, "Leave it out of --speculative-config."
    on_cpu = config.device_config.device_type == "cpu"
    sizes = ("prefill_context", "decode_context") if on_cpu else _SIZES
    for name in sizes:
        if getattr(parallel, f"{name}_parallel_size", 1) > 1:
            got = f"{name.replace('_', '-')} parallelism on {config.device_config.device_type}"
            yield "an engine of one worker", got, select
    if on_cpu and parallel.pipeline_parallel_size > 1 and config.compilation_config.mode == 0:
        got = "--enforce-eager, under which vLLM's later stages lack a buffer on a CPU"
        yield "a pipeline that is compiled", got, "Leave it out."
    if getattr(parallel, "use_ubatching", False):
        yield "whole batches", "micro-batches", "Leave --enable-dbo and --ubatch-size out."
    if config.cache_config.kv_sharing_fast_prefill:
        got = "--kv-sharing-fast-prefill, which leaves tokens out in the middle"
        yield "every token in every layer", got, "Leave it out."
    if config.model_config.is_multimodal_model:
        yield "a language model", "one of several modalities", select
    quantisation = getattr(config.model_config, "quantization", None)
    bits = _bits(getattr(config, "quant_config", None))
    if quantisation and not (on_cpu and quantisation in _QUANTISED and bits <= {_QUANTISED[quantisation]}):
        form = " and ".join(sorted(bits))
        got = f"one quantised by {quantisation}{form and f' to {form}'}, where this mode has never been run"
        yield "a base of plain weights", got, select


def _bits(quantised: Any) -> set[str]:
    """Types of the numbers that a quantised base's weights are stored in, as far as vLLM's settings of it tell."""
    if hasattr(quantised, "weight_bits"):
        return {f"int{quantised.weight_bits}"}
    schemes = getattr(quantised, "target_scheme_map", {}).values()
    weights = [scheme["weights"] for scheme in schemes if scheme and scheme.get("weights")]
    return {f"{getattr(one.type, 'value', one.type)}{one.num_bits}" for one in weights}
