"""What the sites of a generation hold: stacked experts, and a router's tensors. Generations share what is equal."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from glider.layers.bank import Bank, alike, storage
from glider.layers.hot_bank import HotBank
from glider.layers.routed_linear import RoutedLinear
from glider.routing.base import Prepared, Site
from glider.shapes import Tensor


def banks_of(
    originals: Mapping[str, nn.Module],
    prepared: Prepared,
    dtypes: Mapping[str, torch.dtype],
    places: int | None,
    layers: Mapping[str, RoutedLinear],
) -> dict[str, Bank | HotBank]:
    """The bank of every site: one that a layer has from an older generation, where it holds the same.

    A server whose pool is reloaded again and again then holds the experts once, however many of its generations have
    queries in flight. `places` is how many experts a site holds at a time (None: all).
    """
    banks: dict[str, Bank | HotBank] = {}
    for name in prepared.sites:
        if places is None:
            bank = Bank.of(name, prepared.experts, dtypes[name]).to(device_of(originals[name]))
            banks[name] = _shared(bank, layers.get(name))
        else:
            bank = HotBank(name, prepared.experts, places, dtypes[name])
            banks[name] = bank.to(device_of(originals[name]))
    return banks


def with_shared_tensors(prepared: Prepared, layers: Mapping[str, RoutedLinear]) -> Prepared:
    """The same preparation, its sites' tensors (gates) being those of an older generation where these are equal."""
    sites = {name: _shared_tensors(site, layers.get(name)) for name, site in prepared.sites.items()}
    return replace(prepared, sites=sites)


def device_of(original: nn.Module) -> torch.device:
    """Where a module of the base lies."""
    weight = next(original.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def stored_dtype(original: nn.Module, site: str, prepared: Prepared, requested: torch.dtype | None) -> torch.dtype:
    """The dtype in which a site's experts are stored."""
    weight = next(original.parameters(), None)
    usual = weight.dtype if weight is not None and weight.is_floating_point() else torch.float32
    narrow = requested is None and device_of(original).type == "cpu"
    return storage(site, prepared.experts, requested or usual, narrow)


def _shared(bank: Bank, layer: RoutedLinear | None) -> Bank:
    """The latest bank of a layer that holds the same as this one, or this one."""
    served = [] if layer is None else [site.bank for site in layer.served]
    return next((one for one in reversed(served) if isinstance(one, Bank) and one.equals(bank)), bank)


def _shared_tensors(site: Site, layer: RoutedLinear | None) -> Site:
    served = [] if layer is None else [one.site for one in reversed(layer.served)]

    def shared(name: str, tensor: Tensor) -> Tensor:
        olders = (older.tensors[name] for older in served if name in older.tensors)
        return next((older for older in olders if alike(older, tensor)), tensor)

    return replace(site, tensors={name: shared(name, tensor) for name, tensor in site.tensors.items()})
