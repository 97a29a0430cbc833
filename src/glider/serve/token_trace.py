"""Which experts wrote each token of an answer."""

import re
from collections.abc import Sequence
from typing import Any

import torch

from glider.layers.trace import Trace
from glider.routing.base import Decision
from glider.routing.condition import Condition
from glider.shapes import Float, Tensor

_DIGITS = 3


class TokenTrace(Trace):
    """A trace that is read token by token while the answer is being written: of each pass the last token is kept, until
    it has been read."""

    def __init__(self, experts: Sequence[str], condition: Condition, prompt: int):
        super().__init__(experts, condition, torch.ones(1, prompt, dtype=torch.bool))
        self._steps: dict[int, list[tuple[str, Tensor, Tensor]]] = {}

    def add(self, site: str, decision: Decision, sequences: int | None = None, kernel: str | None = None) -> None:
        index = self._counts.get(site, 0)
        self._counts[site] = index + 1
        self._steps.setdefault(index, []).append((site, decision.experts[-1], decision.weights[-1]))

    def step(self, passes: int) -> tuple[list[str], Float[Tensor, "S E"]]:
        """Sites and their weights for the token that the pass of this number chose; what is older is forgotten."""
        calls = self._steps.pop(passes - 1, [])
        for index in [index for index in list(self._steps) if index < passes - 1]:
            del self._steps[index]
        dense = torch.zeros(len(calls), len(self.experts))
        for place, (_, experts, weights) in enumerate(calls):
            dense[place].index_add_(0, experts, weights)
        return [site for site, _, _ in calls], dense


def layer_of(site: str) -> str:
    """The part of a site's name that ends with its layer's number: `model.layers.3`."""
    match = re.match(r"(.*?\.\d+)\.", f"{site}.")
    return match[1] if match else site


class TokenWeights:
    """The weights of an answer's tokens for the reply: by token and layer, and by site."""

    def __init__(self, experts: Sequence[str]):
        self._experts, self._sites, self._layers = list(experts), list[str](), list[str]()
        self._sum: Tensor | None = None
        self._tokens: list[dict[str, Any]] = []

    def add(self, text: str, sites: Sequence[str], weights: Float[Tensor, "S E"]) -> dict[str, float]:
        """Take up a token; returns the mean weight of each expert that it used."""
        if self._sum is None:
            self._sites, self._sum = list(sites), torch.zeros_like(weights)
            self._layers = list(dict.fromkeys(map(layer_of, sites)))
        self._sum += weights
        layer = torch.tensor([self._layers.index(layer_of(site)) for site in sites], dtype=torch.long)
        by_layer = torch.zeros(len(self._layers), len(self._experts)).index_add_(0, layer, weights)
        by_layer /= torch.bincount(layer, minlength=len(self._layers))[:, None].clamp(min=1)
        self._tokens.append({"text": text, "weights": _rounded(by_layer)})
        return self._shares(weights.mean(dim=0) if len(weights) else weights.sum(dim=0))

    @property
    def shares(self) -> dict[str, float]:
        """Mean weight of each expert over tokens and sites."""
        if self._sum is None or not len(self._sum):
            return {}
        return self._shares(self._sum.mean(dim=0) / len(self._tokens))

    @property
    def content(self) -> dict[str, Any]:
        """The whole."""
        mean = torch.zeros(0, len(self._experts)) if self._sum is None else self._sum / max(1, len(self._tokens))
        return {
            "experts": self._experts,
            "layers": self._layers,
            "tokens": self._tokens,
            "sites": self._sites,
            "heatmap": _rounded(mean),
        }

    def _shares(self, mean: Float[Tensor, " E"]) -> dict[str, float]:
        pairs = zip(self._experts, mean.tolist(), strict=True)
        return {name: round(value, _DIGITS) for name, value in pairs if abs(value) >= 0.5 * 10**-_DIGITS}


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, _DIGITS) for value in row] for row in values.tolist()]
