"""The load format `glider`: vLLM's own loading, a check of the base, and the pool's sites in place."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from glider.engines.vllm import contract
from glider.engines.vllm.layout import WeightSamples
from glider.engines.vllm.refusals import require_right
from glider.engines.vllm.requests import wrap
from glider.engines.vllm.rows import Row
from glider.engines.vllm.settings import LOAD_FORMAT, PluginSettings
from glider.engines.vllm.sites import RoutedOutputs, attach, places_of
from glider.engines.vllm.step import STEP, add_requests, prepare_batch, prepare_inputs
from glider.errors import EngineError
from glider.experts.base_identity import identify_weights, require_same_base
from glider.routing.preparation import prepare, ungated

_TRIED = 8  # tokens of the pass that every site must be called in
_TRIAL = "trial"  # the request that they are of


def register_loader() -> None:
    """Make the load format known to vLLM, once in a process."""
    from vllm.model_executor import model_loader  # pyright: ignore[reportMissingImports]

    if LOAD_FORMAT not in model_loader._LOAD_FORMAT_TO_MODEL_LOADER:
        model_loader.register_model_loader(LOAD_FORMAT)(_loader_class())


def _loader_class() -> type:
    from vllm.model_executor.model_loader.default_loader import (  # pyright: ignore[reportMissingImports]
        DefaultModelLoader,
    )

    class PoolLoader(DefaultModelLoader):
        """Loads the base as vLLM does. Draft models are left alone."""

        def __init__(self, load_config: Any):
            super().__init__(dataclasses.replace(load_config, load_format="auto"))
            self._sampled: frozenset[str] = frozenset()
            self._seen: dict[str, torch.Tensor] = {}
            self._sites: frozenset[str] = frozenset()  # whose weights must stand as in the files
            self._samples: WeightSamples | None = None

        def load_weights(self, model: Any, model_config: Any) -> None:
            if not self._sites:
                super().load_weights(model, model_config)
                return
            layers, places = places_of(model)
            self._samples = WeightSamples(places, self._sites)
            super().load_weights(model, model_config)
            self._samples.require_order(layers)
            self._samples = None

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
            for name, weight in super().get_all_weights(model_config, model):
                if name in self._sampled and weight.is_floating_point() and weight.element_size() > 1:  # not quantised
                    self._seen[name] = weight.detach().clone()
                if self._samples is not None:
                    self._samples.see(name, weight)
                yield name, weight

        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
            settings = PluginSettings.of(vllm_config)
            if settings is None or _is_draft(vllm_config, model_config):
                return super().load_model(vllm_config, model_config, prefix)
            contract.require_contract(contract.WORKER)
            require_right(vllm_config, settings)
            pool = settings.open_pool()
            self._sampled = frozenset(pool.index.base.weight_hashes)
            if settings.mode == "route":
                self._sites = frozenset(site for expert in pool for site in expert.sites)
            model = super().load_model(vllm_config, model_config, prefix)
            _require_base(pool, model_config, self._seen)
            self._seen = {}
            if settings.mode == "route":
                route(model, vllm_config, settings, pool)
            return model

    return PoolLoader


def route(model: Any, vllm_config: Any, settings: PluginSettings, pool: Any) -> None:
    """Route the tokens of vLLM's model among the experts of a pool."""
    method = settings.model.method
    prepared = prepare(method, pool)
    outputs = attach(model, vllm_config, ungated(method), prepared, settings.model.kernel)
    _watch_passes(vllm_config.use_v2_model_runner)
    _try(model, vllm_config, outputs, 0 if prepared.global_term is None else len(prepared.experts))


def _watch_passes(second: bool) -> None:
    """Let the runner of this process say which requests each pass is made of."""
    if second:
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner as Runner  # pyright: ignore[reportMissingImports]

        contract.require_contract(contract.SECOND_RUNNER)
        wrap(Runner, "add_requests", add_requests)
        wrap(Runner, "prepare_inputs", prepare_batch)
        return
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # pyright: ignore[reportMissingImports]

    contract.require_contract(contract.FIRST_RUNNER)
    wrap(GPUModelRunner, "_prepare_inputs", prepare_inputs)


def _is_draft(vllm_config: Any, model_config: Any) -> bool:
    speculative = vllm_config.speculative_config
    if speculative is None or model_config is speculative.target_model_config:
        return model_config is not vllm_config.model_config
    return True


def _require_base(pool: Any, model_config: Any, seen: Mapping[str, torch.Tensor]) -> None:
    """Raise `BaseModelError` unless the weights that were loaded are those of the pool's base."""
    got = identify_weights(model_config.hf_config.to_dict(), seen, str(model_config.model))
    require_same_base(pool.index.base, got, f"the pool {pool.path}")


def _try(model: Any, vllm_config: Any, outputs: list[RoutedOutputs], terms: int) -> None:
    """Run a few routed tokens through the model, as vLLM does bare ones to measure memory.

    Raises `EngineError` where that passes by a site: a layer that computes otherwise than by its linear method would
    leave its experts out; and where a layer is given some of the tokens, whose rows it could not tell. What a router or
    a kernel cannot do is told here, not by a worker that fails at the first request.
    """
    from vllm.distributed import get_pp_group  # pyright: ignore[reportMissingImports]
    from vllm.forward_context import set_forward_context  # pyright: ignore[reportMissingImports]

    tokens = min(_TRIED, vllm_config.scheduler_config.max_num_batched_tokens)
    device = vllm_config.device_config.device_type
    ids, positions = torch.zeros(tokens, dtype=torch.long, device=device), torch.arange(tokens, device=device)
    before = None
    if not get_pp_group().is_first_rank:
        before = model.make_empty_intermediate_tensors(
            batch_size=tokens, dtype=vllm_config.model_config.dtype, device=torch.device(device)
        )
    step = vllm_config.compilation_config.static_forward_context[STEP]
    step.prepare([_TRIAL], [Row((0.0,) * terms).encoded], [tokens])
    with torch.inference_mode(), set_forward_context(None, vllm_config, num_tokens=tokens, skip_compiled=True):
        model(input_ids=ids, positions=positions, intermediate_tensors=before)
    step.forget([_TRIAL])
    step.prepare([], [], [])
    idle = sum(not one.tokens for one in outputs)
    if idle:
        got = f"{idle} of {len(outputs)} that this model's passes go by"
        raise EngineError("every routed layer called", got, "Serve it by --mode select, or by `glider serve`.")
    partial = [one.tokens for one in outputs if one.tokens != tokens]
    if partial:
        got = f"{len(partial)} of {len(outputs)} that are given {partial[0]} where the pass has {tokens}"
        raise EngineError("every routed layer called with each token of a pass", got, "Serve it by `glider serve`.")
