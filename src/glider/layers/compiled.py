"""The experts' part of a layer inside a graph of `torch.compile`: one operator, whose work is done when it runs."""

import itertools
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.library import Library, register_fake

_LIBRARY = Library("glider", "FRAGMENT")
_LIBRARY.define("add_experts(Tensor(a!) y, Tensor x, int layer) -> ()")
_NUMBERS = itertools.count()


class Adder:
    """What adds a layer's experts to an output in place, under a number that a graph can hold."""

    def __init__(self, add: Callable[[torch.Tensor, torch.Tensor], None]):
        """`add(y, x)` reads who asks when it is called, not when the graph is made."""
        self.add, self.number = add, next(_NUMBERS)
        _ADDERS[self.number] = self

    def __call__(self, y: torch.Tensor, x: torch.Tensor) -> None:
        torch.ops.glider.add_experts(y, x, self.number)


_ADDERS: WeakValueDictionary[int, Adder] = WeakValueDictionary()


def _add(y: torch.Tensor, x: torch.Tensor, layer: int) -> None:
    _ADDERS[layer].add(y, x)


_LIBRARY.impl("add_experts", _add, "CompositeExplicitAutograd")


@register_fake("glider::add_experts")
def _(y: torch.Tensor, x: torch.Tensor, layer: int) -> None:
    """Nothing: the shapes stay."""


class Untraced:
    """A hook that a graph of the whole model leaves to Python."""

    def __init__(self, hook: Callable[..., Any]):
        self._hook = hook
        self._call: Any = torch.compiler.disable(hook)

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        return self._call(*arguments, **more)

    def __reduce__(self) -> Any:
        return type(self), (self._hook,)
