"""A static router's one expert inside the base's own weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from glider.errors import PoolError, RouterError
from glider.experts.base_identity import holds_values
from glider.experts.expert import ExpertLike
from glider.layers.widths import is_transposed
from glider.routing.base import Prepared
from glider.routing.condition import Condition

_FOLDED = "_glider_folded"  # marks a layer whose weight holds an expert


def require_foldable(model: nn.Module, originals: Mapping[str, nn.Module], prepared: Prepared) -> ExpertLike:
    """The expert to fold; raises `RouterError` where folding would change anything else, or cannot be done.

    A router that decides by token has several. Quantised weights cannot be added to, and a weight that another layer
    shares (a tied output layer and the embedding) would change that one too.
    """
    if len(prepared.experts) != 1:
        raise RouterError(
            "a static router to fold (single, merge, ...)",
            f"one that chooses among {len(prepared.experts)} experts",
            "Keep it attached, or choose a static router.",
        )
    owners = _owners(model)
    for site, module in originals.items():
        weight = getattr(module, "weight", None)
        plain = isinstance(module, nn.Linear) or is_transposed(module)
        if not plain or weight is None or not holds_values(weight):
            kind = "" if weight is None or holds_values(weight) else "quantised "
            got = f"{kind}{type(module).__name__} at {site}"
            raise RouterError("plain linear layers to fold into", got, "Keep the expert attached.")
        if len(owners[weight.data_ptr()]) > 1:
            got = f"{site}, whose weight another layer shares (tied weights)"
            raise RouterError("layers with weights of their own to fold into", got, "Keep the expert attached.")
    return prepared.experts[0]


def fold_into(module: nn.Module, site: str, expert: ExpertLike) -> torch.Tensor:
    """Add an expert to a layer's weight; returns the weight as it was."""
    weight: Any = module.weight
    before = weight.detach().clone()
    a, b = (factor.to(weight.device).float() for factor in expert.factors(site))
    with torch.no_grad():
        added = (expert.scaling(site) * (b @ a)).to(weight.dtype)
        weight += added.mT if is_transposed(module) else added
    module.register_buffer(_FOLDED, torch.empty(0), persistent=False)
    return before


def require_every_row(condition: Condition | None) -> None:
    """Raise `RouterError` for rows that use anything but the router's expert, which a folded base gives to all."""
    if condition is not None and not condition.all_routed:
        expected, got = "queries that all use the folded expert", "one that is left to the base or to other experts"
        raise RouterError(expected, got, "Call unfold() first, or ask it without a verdict.")


def unfold_from(module: nn.Module, before: torch.Tensor) -> None:
    """Give a layer its weight of before."""
    weight: Any = module.weight
    with torch.no_grad():
        weight.copy_(before)
    delattr(module, _FOLDED)


def require_unfolded(module: nn.Module, site: str) -> None:
    """Raise `PoolError` for a layer whose weight holds an expert."""
    if hasattr(module, _FOLDED):
        got = f"an expert that is folded into {site}"
        raise PoolError("a base model of its own weights", got, "Call unfold() before detach(), or load the base anew.")


def _owners(model: nn.Module) -> dict[int, set[tuple[int, str]]]:
    """The layers that share each weight, by the weight's address."""
    owners: dict[int, set[tuple[int, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            for weight in () if child is None else child._parameters.values():
                if weight is not None:
                    owners.setdefault(weight.data_ptr(), set()).add((id(parent), name))
    return owners
