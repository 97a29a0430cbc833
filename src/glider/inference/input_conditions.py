"""Calls of the transformers model itself: `pipeline(model=m.model)`, `m.model.generate(...)`, `m.model(...)`.

They pass token ids and no query. The model that `load` returns decodes its queries from the ids, strips the pool's own
form of a prompt, or parts the turns of a chat, and gives them the condition that `RoutedModel.generate` would. The
condition holds for a whole `generate`, and after a forward pass for the passes that continue on its cache.
"""

import functools
import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from glider.errors import RouterError
from glider.experts.chat_reading import turns_of_prompt
from glider.inference.queries import Prompt, Query
from glider.layers.attach import Generation
from glider.layers.caches import cache_after, cache_among, has_tokens, is_paged
from glider.layers.compiled import Untraced
from glider.routing.base import Observer
from glider.routing.condition import Condition

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel


class InputConditions:
    """Computes the condition of calls that pass only token ids, until the pool is detached."""

    def __init__(self, routed: "RoutedModel"):
        self._routed, self._attached = routed, routed.attached
        self._passes = threading.local()  # forward passes of each thread that have a condition from here
        self._continued: weakref.WeakKeyDictionary[Any, tuple[Condition, Generation]] = weakref.WeakKeyDictionary()

    def install(self) -> None:
        """Listen to the model from now on."""
        model: Any = self._routed.model
        closing = self._attached.closing
        for hook in (
            model.register_forward_pre_hook(Untraced(self._enter), with_kwargs=True),
            model.register_forward_hook(Untraced(self._leave), with_kwargs=True, always_call=True),
        ):
            closing.callback(hook.remove)
        generate = model.generate

        @functools.wraps(generate)
        def generate_by_query(*arguments: Any, **settings: Any) -> Any:
            ids = arguments[0] if arguments else settings.get("inputs", settings.get("input_ids"))
            if not self._unconditioned(ids):
                return generate(*arguments, **settings)
            with self._attached.hold(begins=True) as held:
                condition = self._condition(ids, settings.get("attention_mask"), held)
                with self._attached.routing(condition, generation=held):
                    return generate(*arguments, **settings)

        model.generate = generate_by_query
        closing.callback(model.__dict__.pop, "generate", None)

    def _unconditioned(self, ids: Any) -> bool:
        """Whether a call with these ids still needs a condition: its router or a judge uses one, no block set one."""
        if self._attached.context.batch is not None or not self._attached.attached:
            return False
        generation = self._attached.generation
        prepared = generation.prepared
        needed = (prepared.global_term, prepared.judge) != (None, None) or isinstance(generation.router, Observer)
        return needed and isinstance(ids, torch.Tensor) and ids.ndim == 2 and ids.numel() > 0

    def _condition(self, ids: Any, mask: Any, held: Generation) -> Condition:
        routed = self._routed
        if not isinstance(mask, torch.Tensor) or mask.shape != ids.shape:
            mask = self._mask(ids)
        queries = self._queries(ids, mask)
        return routed._condition_of(queries, {"input_ids": ids, "attention_mask": mask.long()}, held)

    def _mask(self, ids: torch.Tensor) -> torch.Tensor:
        """All tokens but padding, where that is a token of its own, as transformers infers it."""
        tokenizer = self._routed.tokenizer
        pad = tokenizer.pad_token_id
        if pad is None or pad == tokenizer.eos_token_id:
            return torch.ones_like(ids)
        return (ids != pad).long()

    def _queries(self, ids: torch.Tensor, mask: torch.Tensor) -> Sequence[Prompt]:
        return [self._query(row[real].tolist()) for row, real in zip(ids, mask.bool(), strict=True)]

    def _query(self, ids: list[int]) -> Prompt:
        """A chat of several turns as one, so that its last question decides; all else as its text."""
        prompt, tokenizer = self._routed.prompt, self._routed.tokenizer
        turns = turns_of_prompt(prompt, tokenizer, ids)
        if turns is not None and len(turns) > 1 and turns[-1]["content"].strip():
            return Query.chat(turns)
        return prompt.input_of(tokenizer, ids)

    def _enter(self, _: Any, arguments: tuple, inputs: dict[str, Any]) -> None:
        stack = ExitStack()
        self._stacks.append((stack, None))
        ids = inputs.get("input_ids", arguments[0] if arguments else None)
        if is_paged(cache_among(inputs)) or not self._unconditioned(ids):
            return
        held = self._attached.generation
        known = self._known(inputs)
        if known is not None:
            condition, held = known
            if held.number not in self._attached._generations:
                got = "a cache that an earlier state of the pool began"
                raise RouterError("passes on a cache of the pool as it is served", got, "Begin anew.")
        elif _continues(inputs):
            return  # of a prompt that was not seen here: the layers warn
        else:
            condition = self._condition(ids, inputs.get("attention_mask"), held)
        stack.enter_context(self._attached.routing(condition, generation=held))
        self._stacks[-1] = stack, (condition, held)

    def _leave(self, _: Any, __: tuple, ___: dict[str, Any], output: Any) -> None:
        if not self._stacks:
            return  # installed while the pass ran
        stack, used = self._stacks.pop()
        stack.close()
        if used is not None and (cache := cache_after(output)) is not None:
            self._continued[cache] = used

    @property
    def _stacks(self) -> list[tuple[ExitStack, tuple[Condition, Generation] | None]]:
        if not hasattr(self._passes, "stacks"):
            self._passes.stacks = []
        return self._passes.stacks

    def _known(self, inputs: dict[str, Any]) -> tuple[Condition, Generation] | None:
        """The condition of the prompt whose cache a pass continues on."""
        cache = cache_among(inputs)
        if cache in self._continued:
            return self._continued[cache]
        return None


def _continues(inputs: dict[str, Any]) -> bool:
    """Whether a pass continues on earlier tokens that are not among its ids."""
    if inputs.get("encoder_outputs") is not None and inputs.get("input_ids") is None:
        return True
    return has_tokens(cache_among(inputs))
