"""Layers that see one input: q, k and v, gate and up. The first of them answers for all, in one step.

Which layers these are is seen while they run: a layer joins the one before it when both are children of one module and
were given the same tensor. Nothing rests on names, and nothing on what was seen before: a layer takes what was computed
for it only if it is given that tensor again, in the same batch, and no value of it has changed since. One that did not
come for its output is not computed ahead again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from glider.layers.kernels import native

MOST_VALUES = 1 << 16  # of an input: with more, copying it to see whether it changes costs what a step saves
MOST_LAYERS = 8  # that the native kernel takes at once


@runtime_checkable
class Leader(Protocol):
    """The layer that saw an input first, as those that follow it know it."""

    def lead(self, layer: Any) -> None: ...

    def part_from(self, layers: Iterable[Any]) -> None: ...


@dataclass(slots=True, eq=False)
class SharedInput:
    """An input, the layer that saw it first in a batch, and what was computed for the layers that follow."""

    x: torch.Tensor
    batch: object
    leader: Leader
    outputs: dict[nn.Module, torch.Tensor]
    mark: int = 0  # the tensor's version, or the number of the copy of its values
    size: int | None = None  # bytes of these values, of which a copy was made; None: none was

    def remember(self) -> None:
        """Note the input's values. PyTorch counts the changes of a tensor, but not of one made for inference."""
        x = self.x
        if x.is_inference():
            self.size = x.numel() * x.element_size()
            self.mark = _extension().note(x.data_ptr(), self.size)
        else:
            self.mark = x._version

    def take(self, layer: nn.Module, batch: object) -> torch.Tensor | None:
        """A follower's output, once, if there is one and nothing has changed since."""
        if batch is not self.batch:
            return None
        y = self.outputs.pop(layer, None)
        if y is None:
            if layer is not self.leader:
                self.leader.lead(layer)
            return None
        if self.size is None:
            return y if self.x._version == self.mark else None
        return y if _extension().same(self.mark, self.x.data_ptr(), self.size) else None


def _extension() -> ModuleType:
    extension = native.extension()
    assert extension is not None
    return extension
