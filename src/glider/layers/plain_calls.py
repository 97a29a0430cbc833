"""Calls of a routed model outside any `routing` block: each sees one state of the pool, from beginning to end.

Whoever calls the transformers model itself (`model(...)`, `model.generate(...)`) holds no generation of the pool. Hooks
do it for the call, so that `detach` and `fold` wait for it, and `replace` leaves it the experts that it began with.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

from glider.layers.compiled import Untraced
from glider.layers.context import RoutingContext


class Numbered(Protocol):
    """A generation of a pool."""

    @property
    def number(self) -> int: ...


class PlainCalls:
    """Lets each call hold the generation that was current when it began."""

    def __init__(self, context: RoutingContext, hold: Callable[..., AbstractContextManager[Numbered]]):
        self._context, self._hold = context, hold
        self._running = threading.local()  # passes of each thread

    def install(self, model: Any, closing: ExitStack) -> None:
        """Listen to the model until `closing` ends."""
        for hook in (
            model.register_forward_pre_hook(Untraced(self._enter)),
            model.register_forward_hook(Untraced(self._leave), always_call=True),
        ):
            closing.callback(hook.remove)
        generate = getattr(model, "generate", None)
        if generate is None:
            return

        @functools.wraps(generate)
        def generate_by_one_state(*arguments: Any, **settings: Any) -> Any:
            with self._held(begins=True):
                return generate(*arguments, **settings)

        model.generate = generate_by_one_state
        closing.callback(model.__dict__.pop, "generate", None)

    @contextmanager
    def _held(self, *, begins: bool = False) -> Iterator[None]:
        here = self._context.here
        if here.batch is not None or here.generation is not None:  # whoever began this holds one
            yield
            return
        with self._hold(begins=begins) as held:
            here.generation = held.number
            try:
                yield
            finally:
                here.generation = None

    def _enter(self, *_: Any) -> None:
        stack = ExitStack()
        self._stacks.append(stack)
        stack.enter_context(self._held())

    def _leave(self, *_: Any) -> None:
        if self._stacks:  # else installed while the pass ran
            self._stacks.pop().close()

    @property
    def _stacks(self) -> list[ExitStack]:
        if not hasattr(self._running, "stacks"):
            self._running.stacks = []
        return self._running.stacks
