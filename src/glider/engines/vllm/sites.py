"""The sites of a pool in vLLM's model, whose layers compute several of them at once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from glider.engines.vllm.row_table import RowTable
from glider.engines.vllm.rows import most_settled
from glider.engines.vllm.shards import CollectedSite, Place, bank_of, places_in
from glider.engines.vllm.step import STEP, Step
from glider.errors import EngineError, PoolError
from glider.layers.bank import Bank, storage
from glider.layers.context import Segment
from glider.layers.kernels import gpu
from glider.layers.kernels.gpu_group import GroupPart, TritonGroup
from glider.layers.kernels.native import NativeGroup, NativeSite
from glider.layers.routed_site import RoutedSite
from glider.layers.shared_input import MOST_LAYERS
from glider.routing.base import Prepared, Router
from glider.routing.linear import LinearRouter
from glider.routing.preparation import name_of

PREFIX = "glider."  # of a layer's name in an engine's `static_forward_context`
_NAMESPACE = "glider"


class RoutedOutputs(Protocol):
    """What experts add to the outputs of one layer, and how many tokens it was last asked for; 0 before."""

    tokens: int

    def add(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """Add to y (..., O), in place, what the requests' conditions say for the tokens x (..., D)."""
        ...


class GroupedOutputs:
    """On a device: by a table of the requests, so that CUDA graphs hold it; the sites of a layer in one go."""

    def __init__(self, groups: Sequence[TritonGroup], table: RowTable):
        self.groups, self.table = tuple(groups), table
        self.tokens = 0

    def add(self, y: torch.Tensor, x: torch.Tensor) -> None:
        self.tokens = tokens = x.numel() // x.shape[-1]
        inputs, outputs = x.reshape(tokens, -1).contiguous(), y.view(tokens, -1)
        row_of = self.table.row_of[:tokens]
        if len(row_of) < tokens:
            got = f"a pass of {tokens}"
            raise EngineError(f"passes of at most {len(row_of)} tokens", got, "Give a larger --max-num-batched-tokens.")
        for group in self.groups:
            group.add(outputs[:, group.start : group.stop], inputs, self.table.queries, row_of)


class SegmentedOutputs:
    """On the CPU: segment by segment of the pass; the sites of a layer in one call where the native kernel can."""

    def __init__(self, parts: Sequence[tuple[int, int, RoutedSite | CollectedSite]], step: Step):
        self.parts, self.step = tuple(parts), step
        self.tokens = 0
        self._kernels: list[NativeSite] = []
        self._group: NativeGroup | None = None

    def add(self, y: torch.Tensor, x: torch.Tensor) -> None:
        self.tokens = tokens = x.numel() // x.shape[-1]
        count, segments = self.step.segments(tokens, x.device)
        if not segments:
            return
        inputs, outputs = x.reshape(tokens, -1)[:count], y.view(tokens, -1)[:count]
        slices = [outputs[:, start:stop] for start, stop, _ in self.parts]
        for segment in segments:
            group = self._together(segment, inputs, outputs)
            if group is None:
                for part, (_, _, site) in zip(slices, self.parts, strict=True):
                    _add(site, part, inputs, segment)
            elif segment.settled is None:
                group.route(slices, inputs, segment.term, segment.query_of, segment.index)
            else:
                group.apply(slices, inputs, segment.settled, segment.index)

    def _together(self, segment: Segment, inputs: torch.Tensor, outputs: torch.Tensor) -> NativeGroup | None:
        """The kernels of all sites, where each can answer for the segment by itself."""
        kernels: list[NativeSite] = []
        for _, _, site in self.parts:
            kernel = site.kernel_for(segment) if isinstance(site, RoutedSite) else None
            if kernel is None:
                return None
            kernels.append(kernel)
        if len(kernels) > MOST_LAYERS or not (inputs.is_contiguous() and kernels[0].serves(inputs, outputs)):
            return None
        if self._group is None or kernels != self._kernels:
            self._kernels, self._group = kernels, NativeGroup.of(kernels)
        return self._group


def _add(site: RoutedSite | CollectedSite, y: torch.Tensor, x: torch.Tensor, segment: Segment) -> None:
    """Add what one site says to its part of a layer's outputs, whose rows may lie some distance apart."""
    if segment.index is not None:
        rows = y.index_select(0, segment.index)
        y.index_copy_(0, segment.index, site.add(rows, x.index_select(0, segment.index), segment))
    elif y.is_contiguous():
        changed = site.add(y, x, segment)
        if changed is not y:
            y.copy_(changed)
    else:
        y += site.add(y.new_zeros(y.shape), x, segment)


def attach(model: Any, vllm_config: Any, router: Router, prepared: Prepared, kernel: str | None) -> list[RoutedOutputs]:
    """Put every site of a pool on vLLM's model, all or none; raises `PoolError` for one that it does not have.

    Of a model that several workers share, the sites are those of the layers that this worker has.
    """
    layers, places = places_of(model)
    here = check(layers, places, prepared, _elsewhere(model))
    device = torch.device(vllm_config.device_config.device_type)
    by_layer: dict[str, list[tuple[int, int, Any]]] = {}
    for name in here:
        place = places[name]
        dtype = storage(name, prepared.experts, layers[place.layer].params_dtype, device.type == "cpu")
        bank = bank_of(Bank.of(name, prepared.experts, dtype), place).to(device)
        site = prepared.sites[name].to(device)
        if place.inputs.is_whole:
            routed: Any = RoutedSite(site, bank, router, kernel).eval()
        else:
            routed = CollectedSite(site, bank, router, kernel, place.inputs.whole)
        by_layer.setdefault(place.layer, []).append((place.start, place.stop, routed))
    _register_op()
    table = None
    if device.type != "cpu":
        require_triton(kernel)
        table = _table(vllm_config, router, prepared, device)
    step = Step(len(prepared.experts), table)
    context = vllm_config.compilation_config.static_forward_context
    outputs: list[RoutedOutputs] = []
    for name in list(by_layer):
        parts = sorted(by_layer.pop(name), key=lambda part: part[0])  # what is grouped is not held twice
        outputs.append(SegmentedOutputs(parts, step) if table is None else _grouped(parts, table))
        context[PREFIX + name] = outputs[-1]
        layers[name].quant_method = _routed_method(layers[name].quant_method, PREFIX + name)
    context[STEP] = step
    return outputs


def require_triton(kernel: str | None) -> None:
    """Raise `EngineError` where a GPU's layers could not be computed by the triton kernel, or another was asked for."""
    absent = gpu.why_absent()
    if absent or kernel not in (None, "triton"):
        got = absent or f"kernel {kernel}"
        raise EngineError(
            "the triton kernel (--mode route on a GPU)", got, "Serve it by --mode select, or leave it out."
        )


def _grouped(parts: Sequence[tuple[int, int, RoutedSite]], table: RowTable) -> GroupedOutputs:
    return GroupedOutputs(_groups(parts, table.queries.experts.shape[1]), table)


def _table(vllm_config: Any, router: Router, prepared: Prepared, device: torch.device) -> RowTable:
    scheduler, count = vllm_config.scheduler_config, len(prepared.experts)
    per_token = min(count, most_settled(prepared))
    for site in prepared.sites.values():
        linear = router.linear(site) if isinstance(router, LinearRouter) else None
        if linear is None:
            got = f"{name_of(router)}, whose decisions no kernel makes"
            raise EngineError(
                "a router that decides on the GPU", got, "Serve it by --mode select, or by `glider serve`."
            )
        per_token = max(per_token, min(linear.k, count))
    captured = vllm_config.compilation_config.max_cudagraph_capture_size or 0
    return RowTable(count, per_token, scheduler.max_num_seqs, max(scheduler.max_num_batched_tokens, captured), device)


def _groups(parts: Sequence[tuple[int, int, RoutedSite]], per_token: int) -> list[TritonGroup]:
    """The sites of a layer as few groups as can be: all in one, or one by one."""
    group_parts = []
    for start, stop, routed in parts:
        assert isinstance(routed.router, LinearRouter) and isinstance(routed.bank, Bank)
        linear = routed.router.linear(routed.site)
        assert linear is not None
        group_parts.append(GroupPart(start, stop, routed.bank, routed.site, linear))
    together = [group_parts] if TritonGroup.joins(group_parts) else [[one] for one in group_parts]
    return [TritonGroup(group, per_token) for group in together]


def check(
    layers: Mapping[str, Any], places: Mapping[str, Place], prepared: Prepared, elsewhere: Sequence[str] = ()
) -> list[str]:
    """The pool's sites in the layers that this worker has; `elsewhere` begins the names of those that others have.

    Raises `PoolError` unless the model has every site, with the widths that experts have there.
    """
    here = []
    for name in prepared.sites:
        owner = next(expert for expert in prepared.experts if name in expert.sites)
        expected = owner.sites[name]
        if name not in places:
            if name.startswith(tuple(elsewhere)):
                continue
            got = "no such linear layer in vLLM's model, or one that is split among workers in a way not known"
            raise PoolError(f"a site {name}, as expert {owner.name} adapts it", got, "Serve it by `glider serve`.")
        place = places[name]
        got = (place.inputs.whole, place.outputs.whole)
        if got != (expected.in_features, expected.out_features):
            raise PoolError(
                f"a linear layer {expected.in_features} -> {expected.out_features} at {name} (expert {owner.name})",
                f"{got[0]} -> {got[1]} in {place.layer}",
                "The pool is for another architecture; give the base it was made for.",
            )
        here.append(name)
    return here


def places_of(model: Any) -> tuple[dict[str, Any], dict[str, Place]]:
    """The linear layers of vLLM's model, and all sites that they could have, by the names that transformers gives."""
    layers = dict(_linear_layers(model))
    return layers, _places(layers, _packed(model))


def _elsewhere(model: Any) -> Sequence[str]:
    """How the names of layers begin that other workers of a pipeline have."""
    from vllm.model_executor.models.utils import (  # pyright: ignore[reportMissingImports]
        get_pp_missing_layer_names,
    )

    return get_pp_missing_layer_names(model)


def _linear_layers(model: Any) -> Iterator[tuple[str, Any]]:
    from vllm.model_executor.layers.linear import LinearBase  # pyright: ignore[reportMissingImports]

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LinearBase))


def _packed(model: Any) -> Mapping[str, Sequence[str]]:
    from vllm.model_executor.utils import get_packed_modules_mapping  # pyright: ignore[reportMissingImports]

    return get_packed_modules_mapping(model)


def _places(layers: Mapping[str, Any], packed: Mapping[str, Sequence[str]]) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        parts = list(packed.get(last, (last,)))
        for part, place in zip(parts, places_in(name, layer, len(parts)), strict=False):  # none: told as missing
            places[f"{parent}.{part}" if parent else part] = place
    return places


def _routed_method(method: Any, name: str) -> Any:
    """A layer's linear method, quantised or not, with the experts' outputs added to its own."""
    from vllm.model_executor.layers.linear import LinearMethodBase  # pyright: ignore[reportMissingImports]

    class Routed(LinearMethodBase):
        """Of no kind of its own, so that no fused path takes it for a plain one and passes it by."""

        def create_weights(self, *args: Any, **more: Any) -> None:
            method.create_weights(*args, **more)

        def process_weights_after_loading(self, layer: Any) -> None:
            got = "weights that are loaded anew"
            raise EngineError("a base that stays as it is under a pool", got, "Start the engine again.")

        def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            y = method.apply(layer, x, bias)
            torch.ops.glider.routed(y, x, name)
            return y

        def __getattr__(self, attribute: str) -> Any:
            return getattr(method, attribute)

    return Routed()


_library: Any = None


def _register_op() -> None:
    """The operator `glider::routed`, which compilers take as one that writes to y, and do not look into."""
    global _library
    if _library is not None:
        return
    from vllm.utils.torch_utils import direct_register_custom_op  # pyright: ignore[reportMissingImports]

    _library = torch.library.Library(_NAMESPACE, "FRAGMENT")
    direct_register_custom_op("routed", _routed, ["y"], _routed_fake, _library)


def _routed(y: torch.Tensor, x: torch.Tensor, name: str) -> None:
    from vllm.forward_context import get_forward_context  # pyright: ignore[reportMissingImports]

    get_forward_context().no_compile_layers[name].add(y, x)


def _routed_fake(y: torch.Tensor, x: torch.Tensor, name: str) -> None:
    return None
