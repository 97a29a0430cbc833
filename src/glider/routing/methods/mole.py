"""MoLE: a softmax over the experts at every layer, fitted on few rows of a task (arXiv 2404.13628, 2402.11455)."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import router
from glider.routing.products import Pair, require_experts, weighted_sum
from glider.routing.static import MergedExpert, Static

_HOW = "Fit them on few-shot rows of the task (--fewshot)."
_NUMBERED = re.compile(r"^(.*?\.\d+)\.")


@router("mole", paper="arXiv:2404.13628, arXiv:2402.11455")
@dataclass(frozen=True)
class Mole(Static):
    """At every layer sum over e of w_e s_e B_e A_e, w the softmax of a gate that is fitted on few rows of the task.

    A gate a layer, trained by the language model's loss with everything else frozen, as MoLE's layer-wise gates and
    LoRA-Flow's fusion gates are. Theirs read the experts' outputs or the hidden state; this one is a constant of the
    task, so that it has E numbers a layer and the mixture folds into the base. `weights`: by layer (the site's name up
    to its number), each expert's. Settings of the fit: `steps`, `learning_rate`, `seed`.
    """

    weights: Mapping[str, Mapping[str, float]] | None = None

    def __post_init__(self) -> None:
        for layer, weights in (self.weights or {}).items():
            if not all(math.isfinite(weight) for weight in weights.values()):
                raise RouterError("finite weights", f"others at {layer}", _HOW)

    def expert(self, pool: Pool) -> MergedExpert:
        require_experts(pool)
        if self.weights is None:
            raise RouterError("the experts' weights at every layer", "none", _HOW)
        missing = [layer for layer in layers(pool) if set(self.weights.get(layer, ())) != set(pool.names)]
        if missing:
            raise RouterError("a weight of every expert at every layer", f"others at {missing[0]}", _HOW)
        pairs: dict[str, Pair] = {}
        for layer, weights in self.weights.items():
            pairs |= weighted_sum(pool, weights, [site for site in pool.sites if layer_of(site) == layer])
        return MergedExpert("mole", pairs)


def layer_of(site: str) -> str:
    """The layer of a site: its name up to the first number, or the whole of it."""
    match = _NUMBERED.match(site)
    return match[1] if match else site


def layers(pool: Pool) -> list[str]:
    """The layers that experts of a pool adapt, in order."""
    return list(dict.fromkeys(layer_of(site) for site in pool.sites))
