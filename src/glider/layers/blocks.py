"""Attention blocks of the base that prompts may skip: the block adds nothing, and the residual alone goes on.

A prompt decides for itself at every block, by the mean of what its tokens bring there; its answer keeps to that. The
decision lies in the cache of keys and values, so that it follows beams and choices: keys of a prompt that skips are
zero, which no key that was computed is. Where all prompts of a pass skip, the block is not computed at all; where some
do, it is computed for all, and its output left out for these.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from glider.errors import QueryError, RouterError
from glider.layers.caches import cache_among
from glider.layers.context import RoutingContext
from glider.routing.base import Block, BlockRouter, Prepared, Router
from glider.shapes import Float, Tensor

_FAMILIES = "Llama Mistral Qwen2 Qwen3 Gemma Gemma2 Phi3 Granite Olmo Olmo2 Cohere"
KNOWN = frozenset(f"{family}Attention" for family in _FAMILIES.split())
"""Blocks whose output is what the layer adds to its residual: zero of it is the residual alone (tests/layers)."""

_CACHES = ("DynamicLayer", "DynamicSlidingWindowLayer")  # of transformers; they grow with the tokens


@dataclass
class SkippableBlock:
    """The forward of an attention block, for the generations of a pool under which prompts may skip it."""

    name: str
    module: nn.Module
    context: RoutingContext
    inner: Callable[..., Any]
    rules: dict[int, tuple[BlockRouter, Block]] = field(default_factory=dict)

    def __call__(self, hidden_states: Tensor, *others: Any, **inputs: Any) -> Any:
        rule = self._rule()
        if rule is None:
            return self.inner(hidden_states, *others, **inputs)
        cache = cache_among(inputs)
        computed = self._computed(rule, hidden_states, cache)
        if not (computed.requires_grad or bool(computed.any())):
            if cache is not None:
                self._keep_nothing(hidden_states, cache)
            return torch.zeros_like(hidden_states), None
        output, weights = self.inner(hidden_states, *others, **inputs)
        if cache is not None:
            self._forget(computed == 0, hidden_states.shape[1], cache)
        return output * computed[:, None, None].to(output.dtype), weights

    def _rule(self) -> tuple[BlockRouter, Block] | None:
        """That of the generation whose queries are in flight in this thread."""
        batch = self.context.batch
        if batch is None:
            return self.rules.get(self.context.serving)
        rules = [self.rules.get(part.generation) for part in batch.parts]
        if any(rules) and (len(rules) > 1 or batch.token_to_query is not None):
            got = "tokens of several prompts, or generations of the pool, in one row"
            raise QueryError(f"a prompt in each row (blocks are skipped, at {self.name})", got, "Use generate().")
        return rules[0]

    def _computed(self, rule: tuple[BlockRouter, Block], x: Float[Tensor, "B S D"], cache: Any) -> Float[Tensor, " B"]:
        router, block = rule
        if cache is not None and cache.get_seq_length(self._layer) > 0:
            return (self._cached(cache).keys[:, :, -1] != 0).flatten(1).any(dim=1).to(torch.float32)
        sequences = self.context.sequences
        if sequences is None or sequences.number.shape != x.shape[:2]:
            expected = f"a pass of the whole model (prompts skip the block {self.name})"
            raise QueryError(expected, "a call of a part of it", "Call the model itself.")
        real = (sequences.number >= 0).to(x.device)[:, :, None]
        mean = (x.float() * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)  # (B, D)
        if block["gate"].device != x.device:
            block = block.to(x.device)
        computed = router.computed(block, mean)
        bare = self._bare(len(x))
        return computed if bare is None else torch.where(bare.to(x.device), 1.0, computed)

    def _bare(self, rows: int) -> Tensor | None:
        """Rows that are left to the base, which computes all its blocks; None where there are none."""
        batch = self.context.batch
        condition = None if batch is None else batch.parts[0].condition
        if condition is None or condition.bare is None or not bool(condition.bare.any()):
            return None
        return condition.bare_rows.repeat_interleave(rows // len(condition))

    @property
    def _layer(self) -> int:
        return self.module.layer_idx  # pyright: ignore[reportReturnType]

    def _cached(self, cache: Any) -> Any:
        layer = cache.layers[self._layer] if self._layer < len(cache.layers) else None
        if layer is not None and type(layer).__name__ not in _CACHES:
            expected = "a cache that grows with the tokens, where prompts skip attention blocks"
            raise QueryError(expected, type(layer).__name__, "Leave cache_implementation out.")
        return layer

    def _keep_nothing(self, x: Float[Tensor, "B S D"], cache: Any) -> None:
        """Keys and values of zero for tokens that skip: the cache is as long at this layer as at all others."""
        self._cached(cache)
        config: Any = self.module.config
        head: Any = self.module.head_dim
        nothing = x.new_zeros(len(x), config.num_key_value_heads, x.shape[1], head)
        cache.update(nothing, nothing, self._layer)

    def _forget(self, skipping: Tensor, tokens: int, cache: Any) -> None:
        """The same for the rows that skip of a pass that was computed for others."""
        layer = self._cached(cache)
        if bool(skipping.any()):
            if torch.is_grad_enabled():  # the block's own gradient needs what it was computed with
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
            layer.keys[skipping, :, -tokens:] = 0
            layer.values[skipping, :, -tokens:] = 0


class Blocks:
    """The skippable blocks of one model."""

    def __init__(self, model: nn.Module, context: RoutingContext):
        self._model, self._context = model, context
        self._blocks: dict[str, SkippableBlock] = {}

    def require(self, prepared: Prepared) -> None:
        """Raise `RouterError` for a block that the model lacks, or that cannot be skipped."""
        for name in prepared.blocks:
            try:
                kind = type(self._model.get_submodule(name)).__name__
            except AttributeError:
                kind = "no such module"
            if kind not in KNOWN:
                expected = f"attention blocks that can be skipped ({', '.join(sorted(KNOWN))})"
                raise RouterError(expected, f"{kind} at {name}", "Choose mindskip, which skips experts alone.")

    def put(self, generation: int, router: Router | BlockRouter, blocks: Mapping[str, Block]) -> None:
        """Let the prompts of a generation skip blocks from now on."""
        assert not blocks or isinstance(router, BlockRouter)
        for name, block in blocks.items():
            if name not in self._blocks:
                module = self._model.get_submodule(name)
                self._blocks[name] = SkippableBlock(name, module, self._context, module.forward)
                module.forward = self._blocks[name]
            self._blocks[name].rules[generation] = (router, block)  # pyright: ignore[reportArgumentType]

    def drop(self, generation: int) -> None:
        """Forget a generation, and give the model its own forward back where none is left."""
        for name, block in list(self._blocks.items()):
            block.rules.pop(generation, None)
            if not block.rules:
                del self._blocks[name]
                _restore(block)

    def close(self) -> None:
        """Give the model all its own forwards back."""
        for block in self._blocks.values():
            _restore(block)
        self._blocks = {}


def _restore(block: SkippableBlock) -> None:
    if getattr(block.inner, "__func__", None) is type(block.module).forward:
        del block.module.forward  # the class's own shows again
    else:
        block.module.forward = block.inner
