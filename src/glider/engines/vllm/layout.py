"""Whether the outputs and inputs of vLLM's layers stand in the order in which the files have them.

Experts know the order of the files. For some architectures (Bloom, Falcon) vLLM puts the rows of a fused layer into an
order of its own while it reads them: shapes are the same then, and what experts add would go to other heads.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from glider.engines.vllm.shards import Place
from glider.errors import EngineError

_PLAIN = "weight"
_PACKED = ("qweight", "weight_packed")  # of GPTQ and AWQ, of compressed-tensors
Sample = tuple[torch.Tensor, torch.Tensor]
"""Two columns and two rows of a weight, of which every output and every input has a value."""


class WeightSamples:
    """Samples of the sites' weights: of each worker, in the part that it has."""

    def __init__(self, places: Mapping[str, Place], sites: Collection[str]):
        self._places = {name: places[name] for name in sites if name in places}
        self._names: dict[str, str] = {}
        for name in self._places:
            self._names[name] = name
            self._names.setdefault(name.partition(".")[2], name)  # in files of a model without its head
        self._seen: dict[str, tuple[str, list[Sample]]] = {}

    def see(self, key: str, weight: torch.Tensor) -> None:
        """Note a tensor of the files, if it is a site's weight."""
        owner, _, kind = key.rpartition(".")
        name = self._names.get(owner)
        if name is None or weight.dim() != 2:
            return
        place = self._places[name]
        if kind == _PLAIN:
            shape = (place.outputs.whole, place.inputs.whole)
            # a Conv1D of transformers' stores its weight the other way; of a square one both ways are noted
            forms = [one for one in (weight, weight.mT) if tuple(one.shape) == shape]
            self._seen[name] = kind, [_sample(one[place.outputs.slice, place.inputs.slice]) for one in forms]
        elif kind in _PACKED and place.outputs.is_whole and place.inputs.is_whole:
            self._seen[name] = kind, [_sample(weight)]

    def require_order(self, layers: Mapping[str, Any]) -> None:
        """Raise `EngineError` for a site whose layer has its weight in another order, before vLLM packs it.

        A layer of several parts that is one site must have been seen: those are what vLLM puts in another order.
        """
        for name, place in self._places.items():
            layer = layers[place.layer]
            kind, forms = self._seen.get(name, (_PLAIN, []))
            weight, parts = getattr(layer, kind, None), getattr(layer, "output_partition_sizes", ())
            is_layer = place.outputs.count >= sum(parts)
            if forms and weight is not None and (kind == _PLAIN or is_layer):
                mine = _sample(weight[place.start : place.stop] if kind == _PLAIN else weight)
                alike, got = any(_equal(mine, form) for form in forms), "another order in vLLM's layer"
            else:
                alike = len(parts) <= 1 or not is_layer
                got = f"a layer of {len(parts)} parts, of which vLLM may have changed the order"
            if not alike:
                expected = f"the outputs of {name} in the order of the base's files"
                raise EngineError(expected, got, "Serve it by `glider serve`.")


def _sample(weight: torch.Tensor) -> Sample:
    outputs, inputs = weight.shape
    return weight[:, [0, inputs // 2]].detach().clone(), weight[[0, outputs // 2]].detach().clone()


def _equal(mine: Sample, files: Sample) -> bool:
    return all(torch.equal(one, other.to(one)) for one, other in zip(mine, files, strict=True))
