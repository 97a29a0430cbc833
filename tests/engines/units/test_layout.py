"""A layer of vLLM's whose outputs stand in another order than the files' is refused before it serves."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glider.engines.vllm.layout import WeightSamples
from glider.engines.vllm.shards import Place, Span
from glider.errors import EngineError

HEADS, WIDTH = 2, 4
PARTS = {f"model.{name}": Place("model.qkv", 8 * i, Span(0, 8, 8), Span(0, 8, 8)) for i, name in enumerate("qkv")}


def whole(layer: str, outputs: int, inputs: int) -> Place:
    return Place(layer, 0, Span(0, inputs, inputs), Span(0, outputs, outputs))


def by_kind(weight: torch.Tensor) -> torch.Tensor:
    """Rows of q, k, v by head, as Bloom's files have them, as vLLM's layer has them: first all of q."""
    return weight.view(HEADS, 3, WIDTH, -1).transpose(0, 1).reshape(weight.shape)


@pytest.mark.parametrize("key", ["transformer.h.0.query_key_value.weight", "h.0.query_key_value.weight"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_fused_layer_in_another_order_is_refused(key: str, stored: torch.dtype) -> None:
    site = "transformer.h.0.query_key_value"
    weight = torch.randn(3 * HEADS * WIDTH, 8).to(stored)
    samples = WeightSamples({site: whole(site, *weight.shape)}, [site, "elsewhere"])
    samples.see(key, weight)
    samples.see("transformer.h.0.dense.weight", weight)  # no site
    parts = [HEADS * WIDTH] * 3
    layer: Any = SimpleNamespace(weight=weight.bfloat16(), output_partition_sizes=parts)
    samples.require_order({site: layer})
    layer.weight = by_kind(weight).bfloat16()
    with pytest.raises(EngineError, match="order of the base's files"):
        samples.require_order({site: layer})


def test_each_worker_compares_the_part_that_it_has() -> None:
    site = "model.down_proj"
    weight = torch.randn(6, 8)
    place = Place(site, 0, Span(4, 4, 8), Span(0, 6, 6))
    samples = WeightSamples({site: place}, [site])
    samples.see(f"{site}.weight", weight)
    samples.require_order({site: SimpleNamespace(weight=weight[:, 4:], output_partition_sizes=[6])})
    with pytest.raises(EngineError, match="another order"):
        samples.require_order({site: SimpleNamespace(weight=weight[:, :4], output_partition_sizes=[6])})


def test_a_weight_stored_the_other_way_is_the_same() -> None:
    """As a Conv1D of GPT-2's, whose square ones cannot be told by their shape."""
    for shape in ((8, 6), (6, 6)):
        site = "transformer.h.0.c_attn"
        weight = torch.randn(*shape)
        samples = WeightSamples({site: whole(site, *shape)}, [site])
        samples.see(f"{site}.weight", weight.mT.contiguous())
        samples.require_order({site: SimpleNamespace(weight=weight, output_partition_sizes=[2, 2, shape[0] - 4])})


def test_packed_weights_of_a_fused_layer_are_compared_as_they_are() -> None:
    site = "model.qkv_proj"
    packed = torch.randint(0, 1 << 30, (3, 24), dtype=torch.int32)
    samples = WeightSamples({site: whole(site, 24, 24)}, [site])
    samples.see(f"{site}.qweight", packed)
    samples.see(f"{site}.scales", packed)
    layer: Any = SimpleNamespace(qweight=packed.clone(), output_partition_sizes=[8, 8, 8])
    samples.require_order({site: layer})
    layer.qweight = packed.flip(1)
    with pytest.raises(EngineError, match="another order"):
        samples.require_order({site: layer})
    samples = WeightSamples(PARTS, list(PARTS))
    samples.see("model.q.qweight", packed[:, :8])  # of a part, whose place in the layer's is not known
    samples.require_order({"model.qkv": layer})


def test_what_is_not_seen_is_refused_where_one_site_is_a_layer_of_several_parts() -> None:
    """A quantised layer has no weight to compare, and vLLM puts those in another order as well."""
    site = "transformer.h.0.query_key_value"
    layer = SimpleNamespace(qweight=torch.zeros(3, 8), output_partition_sizes=[8, 8, 8])
    with pytest.raises(EngineError, match="a layer of 3 parts"):
        WeightSamples({site: whole(site, 24, 8)}, [site]).require_order({site: layer})
    WeightSamples(PARTS, list(PARTS)).require_order({"model.qkv": layer})  # each its own site
