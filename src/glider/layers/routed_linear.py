"""A site's module with its experts beside it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from glider.errors import QueryError
from glider.layers.compiled import Adder
from glider.layers.context import Batch, InFlight, RoutingContext, Segment
from glider.layers.kernels import native
from glider.layers.kernels.native import NativeGroup, NativeSite
from glider.layers.routed_site import RoutedSite
from glider.layers.shared_input import MOST_LAYERS, MOST_VALUES, SharedInput
from glider.layers.trace import SiteRecord

_EVERY_FORWARD_HOOK = torch.nn.modules.module._global_forward_hooks
_EVERY_FORWARD_PRE_HOOK = torch.nn.modules.module._global_forward_pre_hooks


@dataclass(frozen=True, eq=False)
class Together:
    """Layers whose tokens one call of the native kernel answers, in segments of one generation and kind."""

    layers: tuple["RoutedLinear", ...]
    generation: int
    settled: bool
    sites: tuple[tuple[RoutedSite, NativeSite], ...]
    group: NativeGroup

    @classmethod
    def of(cls, layers: tuple["RoutedLinear", ...], segment: Segment) -> "Together | None":
        """None where one of the layers has no expert in the segment's generation, or needs another kernel."""
        sites = []
        for layer in layers:
            site = layer._served.get(segment.generation)
            kernel = None if site is None else site.kernel_for(segment)
            if site is None or kernel is None:
                return None
            sites.append((site, kernel))
        group = NativeGroup.of([kernel for _, kernel in sites])
        return cls(layers, segment.generation, segment.settled is not None, tuple(sites), group)

    def serves(self, layers: tuple["RoutedLinear", ...], segment: Segment) -> bool:
        """Whether it is for these, and the kernels are still those of the sites: whoever moves one makes a new one."""
        if self.layers is not layers or self.generation != segment.generation:
            return False
        if self.settled is (segment.settled is None):
            return False
        for site, kernel in self.sites:  # noqa: SIM110  (a generator costs more)
            if site._bound is not kernel:
                return False
        return True


class RoutedLinear(nn.Module):
    """y = base(x) + what the experts add, by the generation of the pool that serves each token's query.

    `base` is anything that maps (..., D) to (..., O); it is called, never read, so it may be quantised. Tokens that use
    no expert have the base's output, bit for bit.
    """

    def __init__(self, name: str, base: nn.Module, context: RoutingContext, in_features: int, out_features: int):
        super().__init__()
        self.base, self.context, self.name = base, context, name
        self.in_features, self.out_features = in_features, out_features
        self.sites = nn.ModuleDict()  # by generation
        self._served: dict[int, RoutedSite] = {}  # the same, found faster
        self._parent = name.rpartition(".")[0]
        self._together: tuple[RoutedLinear, ...] = (self,)  # with those that see its input after it
        self._alone: set[RoutedLinear] = set()  # those that once did, but did not come again
        self._known: Together | None = None  # asked for last
        self._adder = Adder(self._add_in_place)
        self.register_state_dict_post_hook(_name_as_base)
        self.register_load_state_dict_pre_hook(_find_base)

    @classmethod
    def over(cls, base: nn.Module, site: RoutedSite, context: RoutingContext) -> "RoutedLinear":
        """A layer whose site serves the context's current generation."""
        layer = cls(site.site.name, base, context, site.in_features, site.out_features)
        layer.put(context.current, site)
        return layer

    def put(self, generation: int, site: RoutedSite) -> None:
        """Serve queries of a generation by this site from now on."""
        self.sites[str(generation)] = site.train(self.training)
        self._served[generation] = site

    def drop(self, generation: int) -> None:
        """Forget a generation; its queries would have the base alone."""
        self._known = None  # it may hold this generation's experts
        if self._served.pop(generation, None) is not None:
            del self.sites[str(generation)]

    @property
    def current(self) -> RoutedSite:
        """The site as the current generation serves it."""
        return self._served[self.context.current]

    @property
    def served(self) -> list[RoutedSite]:
        """The site as each generation serves it, in the order that they came."""
        return list(self._served.values())

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight: T5 asks its output layer for its dtype."""
        return self.base.weight  # pyright: ignore[reportReturnType]

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's bias."""
        return self.base.bias  # pyright: ignore[reportReturnType]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() and not torch.is_grad_enabled():
            y = _writable(self.base(x), self.base)
            self._adder(y, x)
            return y
        here = self.context.here
        batch = here.batch
        if batch is not None and batch.strangers:
            if x.shape[0] != batch.strangers:  # else there is a row for each
                batch.segments(x.numel() // self.in_features, x.shape[0] if x.ndim > 2 else None, x.device)
            return self._base(x)
        shared = here.shared
        if shared is not None and shared.x is x:
            y = shared.take(self, batch)
            if y is not None:
                return y
        if batch is not None and batch.recorder is None and self._groupable(x):
            return self._few(x, batch, here)
        return self._with_experts(self._base(x), x)

    def _with_experts(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The base's output y with what the experts of this thread's batch add to it, as the trace records it."""
        batch = self.context.here.batch
        segments = self.context.segments(x.numel() // self.in_features, x.shape[0] if x.ndim > 2 else None, x.device)
        record = None
        if batch is not None and batch.recorder is not None:
            record = SiteRecord(self.name, x.numel() // self.in_features, x.shape[0] if x.ndim > 2 else None)
        y = self._add(y, x, segments, record)
        if record is not None and batch is not None and batch.recorder is not None:
            batch.recorder.record(record)
        return y

    def _add_in_place(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """The same in y itself, as a compiled graph has it."""
        result = self._with_experts(y, x)
        if result is not y:
            y.copy_(result)

    def lead(self, layer: "RoutedLinear") -> None:
        """Answer for a layer that was given this one's input, from the next call on."""
        known = layer in self._together or layer in self._alone or layer._parent != self._parent
        if not known and len(self._together) < MOST_LAYERS:
            self._together = (*self._together, layer)

    def _groupable(self, x: torch.Tensor) -> bool:
        return (
            x.numel() <= MOST_VALUES
            and x.is_cpu
            and not torch.is_grad_enabled()
            and x.is_contiguous()
            and native.extension() is not None
            and not torch.compiler.is_compiling()
        )

    def _few(self, x: torch.Tensor, batch: Batch, here: InFlight) -> torch.Tensor:
        """The output for an input of few tokens, computed with those of the layers that see it too."""
        segments = batch.segments(x.numel() // self.in_features, x.shape[0] if x.ndim > 2 else None, x.device)
        if not segments:  # strangers
            return self._base(x)
        before = here.shared
        if before is not None and before.batch is batch:
            if before.x is x and before.leader is not self:  # it follows for the first time, or its input changed
                return self._add(self._base(x), x, segments, None)
            if before.outputs:
                before.leader.part_from(before.outputs)
        shared = here.shared = SharedInput(x, batch, self, {})
        layers = self._together
        if len(layers) > 1:
            if all([layer._plain() for layer in layers]):  # noqa: C419  (a generator costs more)
                shared.remember()  # before anything is computed of it
            else:
                layers = (self,)
        ys = [layer._base(x) for layer in layers]
        for segment in segments:
            group = self._group(layers, segment, x, ys)
            if group is None:
                ys = [layer._add(y, x, (segment,), None) for layer, y in zip(layers, ys, strict=True)]
            elif segment.settled is not None:
                group.apply(ys, x, segment.settled, segment.index)
            else:
                group.route(ys, x, segment.term, segment.query_of, segment.index)
        for layer, y in zip(layers[1:], ys[1:], strict=True):
            shared.outputs[layer] = y
        return ys[0]

    def _group(
        self, layers: tuple["RoutedLinear", ...], segment: Segment, x: torch.Tensor, ys: Sequence[torch.Tensor]
    ) -> NativeGroup | None:
        """The kernel that answers a segment for all of these layers, if there is one for such outputs."""
        if x.dtype not in native.DTYPES:
            return None
        for y in ys:
            if y.dtype is not x.dtype or not y.is_contiguous() or y.requires_grad:
                return None
        known = self._known
        if known is None or not known.serves(layers, segment):
            known = self._known = Together.of(layers, segment) if self._plain() else None
        return None if known is None else known.group

    def _base(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output. Of a plain layer that is one product, without the way there: in decoding it counts."""
        base: Any = self._modules["base"]  # every attribute that is a module costs a search
        if not self._plain():
            return base(x)
        parameters = base._parameters
        return torch.nn.functional.linear(x, parameters["weight"], parameters["bias"])

    def _plain(self) -> bool:
        """Whether the base does nothing but compute: it may be called ahead of its time."""
        base: Any = self._modules["base"]
        return type(base) is nn.Linear and not (
            base._forward_hooks
            or base._forward_pre_hooks
            or base._backward_hooks
            or base._backward_pre_hooks
            or "forward" in base.__dict__  # accelerate puts another one there
            or base._compiled_call_impl
            or _EVERY_FORWARD_HOOK
            or _EVERY_FORWARD_PRE_HOOK
        )

    def part_from(self, layers: Iterable["RoutedLinear"]) -> None:
        """Answer no more for layers that did not come for their outputs."""
        self._alone.update(layers)
        self._together = tuple([layer for layer in self._together if layer not in self._alone])

    def _add(
        self, y: torch.Tensor, x: torch.Tensor, segments: Sequence[Segment], record: SiteRecord | None
    ) -> torch.Tensor:
        """y with what the segments' tokens get."""
        writable = False
        for segment in segments:
            site = self._served.get(segment.generation)
            if site is None:
                continue  # this generation has no expert here
            if not writable:
                y, writable = _writable(y, self._modules["base"]), True
            watch = None if record is None else record.watch(segment.index)
            if site.by_sequence and segment.settled is None:
                segment = self._with_sequences(segment, x)
            y = site.add_at(y, x, segment, watch)
        return y

    def _with_sequences(self, segment: Segment, x: torch.Tensor) -> Segment:
        """A segment that knows which of its tokens stand together."""
        sequences = self.context.sequences
        if sequences is None:
            expected = f"a pass of the whole model (a router that decides prompts as a whole, at {self.name})"
            raise QueryError(expected, "a call of a part of it", "Call the model itself.")
        numbers = sequences.of_tokens(x.numel() // self.in_features, x.device)
        return replace(segment, sequence_of=numbers if segment.index is None else numbers[segment.index])


def _name_as_base(layer: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """The base's tensors under the names that they have without the experts: those are not the model's."""
    inner = f"{prefix}base."
    for name in [name for name in state if name.startswith(inner)]:
        state[prefix + name.removeprefix(inner)] = state.pop(name)


def _find_base(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """The reverse, for `load_state_dict`."""
    for name in [name for name in state if name.startswith(prefix) and not name.startswith(f"{prefix}base.")]:
        state[f"{prefix}base.{name.removeprefix(prefix)}"] = state.pop(name)


def _writable(y: torch.Tensor, base: nn.Module | None) -> torch.Tensor:
    """An output that may be overwritten: other kinds of layers may return a tensor that others use."""
    fresh = type(base) is nn.Linear and not base._forward_hooks and y.is_contiguous()
    return y if fresh else y.clone(memory_format=torch.contiguous_format)
