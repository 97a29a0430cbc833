"""A site's module with its experts beside it."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from glider.errors import QueryError
from glider.layers.context import RoutingContext, Segment
from glider.layers.routed_site import RoutedSite, Watch
from glider.layers.trace import SiteRecord


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
        if self._served.pop(generation, None) is not None:
            del self.sites[str(generation)]

    @property
    def current(self) -> RoutedSite:
        """The site as the current generation serves it."""
        return self._served[self.context.current]

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight: T5 asks its output layer for its dtype."""
        return self.base.weight  # pyright: ignore[reportReturnType]

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's bias."""
        return self.base.bias  # pyright: ignore[reportReturnType]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base: Any = self._modules["base"]  # every attribute that is a module costs a search
        y = base(x)
        context = self.context
        segments = context.segments(x.numel() // self.in_features, x.shape[0] if x.ndim > 2 else None, x.device)
        batch = context.batch
        record = None
        if batch is not None and batch.recorder is not None:
            record = SiteRecord(self.name, x.numel() // self.in_features, x.shape[0] if x.ndim > 2 else None)
        writable = False
        for segment in segments:
            site = self._served.get(segment.generation)
            if site is None:
                continue  # this generation has no expert here
            if not writable:
                y, writable = _writable(y, base), True
            watch = None if record is None else record.watch(segment.index)
            if site.by_sequence and segment.settled is None:
                segment = self._with_sequences(segment, x)
            y = _added(site, y, x, segment, watch)
        if record is not None and batch is not None and batch.recorder is not None:
            batch.recorder.record(record)
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


def _added(site: RoutedSite, y: torch.Tensor, x: torch.Tensor, segment: Segment, watch: Watch | None) -> torch.Tensor:
    """y with the experts' outputs for a segment's tokens; other tokens are unchanged, bit for bit."""
    index = segment.index
    if index is None:
        return site.add(y, x, segment, watch)
    rows = y.view(-1, site.out_features)
    tokens = x.reshape(-1, site.in_features).index_select(0, index)
    changed = site.add(rows.index_select(0, index), tokens, segment, watch)
    if torch.is_grad_enabled() and (y.requires_grad or changed.requires_grad):
        return rows.index_copy(0, index, changed).view(y.shape)
    rows.index_copy_(0, index, changed)
    return y


def _writable(y: torch.Tensor, base: nn.Module) -> torch.Tensor:
    """An output that may be overwritten: other kinds of layers may return a tensor that others use."""
    fresh = type(base) is nn.Linear and not base._forward_hooks and y.is_contiguous()
    return y if fresh else y.clone(memory_format=torch.contiguous_format)
