"""One pass of a model, to be timed again and again: a prompt, or a step after one."""

from collections.abc import Callable
from typing import Any

import torch

from glider.layers.caches import cache_after, with_cache
from glider.layers.routed_linear import RoutedLinear

CONTEXT = 64  # tokens before a step


def filler(model: Any, ids: torch.Tensor, routing: Callable[[int], Any]) -> Callable[[], Any]:
    """Makes a batch's cache."""

    def run() -> Any:
        with torch.inference_mode(), routing(len(ids)):
            return model(input_ids=ids, use_cache=True, logits_to_keep=1)

    run()
    return run


def stepper(model: Any, ids: torch.Tensor, routing: Callable[[int], Any]) -> Callable[[], Any]:
    """Takes one step after CONTEXT tokens, and takes it back."""
    prompt = random_ids(model, len(ids), CONTEXT, seed=3)
    with torch.inference_mode(), routing(len(ids)):
        cache = cache_after(model(input_ids=prompt, use_cache=True, logits_to_keep=1))
    given = with_cache(model, cache)

    def run() -> Any:
        with torch.inference_mode(), routing(len(ids)):
            output = model(input_ids=ids, **given, use_cache=True)
        cache.crop(-1)
        return output

    run()
    return run


def static_step(model: Any, ids: torch.Tensor, routing: Callable[[int], Any]) -> tuple[Callable[[], Any], Any]:
    """The same step each time, over a static cache of CONTEXT + 1 tokens; and what it reads."""
    from transformers import StaticCache

    prompt = random_ids(model, len(ids), CONTEXT, seed=3)
    with torch.inference_mode(), routing(len(ids)):
        cache: Any = StaticCache(config=model.config, max_cache_len=CONTEXT + 1)
        given = with_cache(model, cache)
        model(input_ids=prompt, **given, use_cache=True, logits_to_keep=1)
        place = torch.full((len(ids), 1), CONTEXT, device=ids.device)

    def step() -> Any:
        output = model(input_ids=ids, **given, use_cache=True, position_ids=place)
        take_back: Any = torch._foreach_sub_  # pyright: ignore[reportPrivateImportUsage]
        take_back([layer.cumulative_length for layer in cache.layers], 1)
        return output

    return step, (cache, ids, place)


def compiled_stepper(model: Any, ids: torch.Tensor, routing: Callable[[int], Any]) -> Callable[[], Any]:
    """The same step each time, by a compiled model."""
    step, _ = static_step(model, ids, routing)

    def run() -> Any:
        with torch.inference_mode(), routing(len(ids)):
            return step()

    run()
    return run


def graphed_stepper(model: Any, ids: torch.Tensor, routing: Callable[[int], Any]) -> Callable[[], Any]:
    """The same step each time, as a replayed CUDA graph."""
    step, inputs = static_step(model, ids, routing)
    with torch.inference_mode(), routing(len(ids)):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        batches = [module.context.batch for module in model.modules() if isinstance(module, RoutedLinear)]

    def run(_: Any = (inputs, batches)) -> None:  # what the graph reads lives as long as it does
        graph.replay()

    return run


def random_ids(model: Any, rows: int, length: int, seed: int) -> torch.Tensor:
    """Tokens of the whole vocabulary, on the model's device."""
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (rows, length), generator=chance).to(model.device)
