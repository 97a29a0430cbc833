"""Install a routed pool on a transformers model, and take it off again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from glider.errors import PoolError, RouterError
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.layers.bank import Bank, storage
from glider.layers.context import Batch, RoutingContext
from glider.layers.hot_bank import ExpertMemory, HotBank, places_within
from glider.layers.routed_linear import RoutedLinear
from glider.layers.trace import Trace
from glider.routing.base import Condition, Prepared, Router
from glider.shapes import Int, Tensor

_RELEASE = 16  # sites whose pairs may lie in memory twice, in the experts' files and stacked
_FOLDED = "_glider_folded"  # marks a layer whose weight holds an expert


class Attached:
    """A pool installed on a model. The model is still the transformers model it was."""

    def __init__(self, model: nn.Module, router: Router, prepared: Prepared, originals: dict[str, nn.Module]):
        self.model, self.router, self.prepared = model, router, prepared
        self.context = RoutingContext()
        self._originals = originals
        self._unfolded: dict[str, torch.Tensor] = {}

    @property
    def expert_memory(self) -> ExpertMemory | None:
        """What holding experts in limited memory came to so far; None where all of them lie in memory."""
        banks = [module for module in self.model.modules() if isinstance(module, HotBank)]
        if not banks:
            return None
        size = sum(tensor.nbytes for bank in banks for tensor in (bank.A, bank.B))
        return ExpertMemory(len(banks[0].A), size, sum(bank.reads for bank in banks))

    @contextmanager
    def routing(
        self,
        condition: Condition | None,
        *,
        token_to_query: Int[Tensor, " T"] | None = None,
        trace: Trace | None = None,
    ) -> Iterator[None]:
        """Route every forward pass inside the block by this global term, in this thread."""
        with self.context.use(Batch(condition, token_to_query, trace)):
            yield

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Run every forward pass inside the block without experts, in this thread."""
        with self.context.use(Batch(None, bare=True)):
            yield

    def fold(self) -> None:
        """Add a static router's one expert to the base weights, so that it costs nothing; `detach` takes it out again.

        The weights before are kept until then. Raises `RouterError` for a router that decides by token, and for a base
        whose layers are not plain `nn.Linear` (quantised weights cannot be added to).
        """
        if self._unfolded or not self.prepared.sites:
            return  # folded already, or nothing to fold
        if not self._originals:
            raise RouterError("an attached pool", "one that was detached", "Attach it again.")
        if len(self.prepared.experts) != 1:
            raise RouterError(
                "a static router to fold (single, merge, ...)",
                f"one that chooses among {len(self.prepared.experts)} experts",
                "Keep it attached, or choose a static router.",
            )
        for site, module in self._originals.items():
            if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
                got = f"{type(module).__name__} at {site}"
                raise RouterError("plain linear layers to fold into", got, "Keep the expert attached.")
        (expert,) = self.prepared.experts
        for site, module in self._originals.items():
            assert isinstance(module, nn.Linear)
            a, b = (factor.to(module.weight.device).float() for factor in expert.factors(site))
            self._unfolded[site] = module.weight.detach().clone()
            with torch.no_grad():
                module.weight += (expert.scaling(site) * (b @ a)).to(module.weight.dtype)
            _replace(self.model, site, module)
            module.register_buffer(_FOLDED, torch.empty(0), persistent=False)

    def detach(self) -> None:
        """Restore the model exactly."""
        with torch.no_grad():
            for site, weight in self._unfolded.items():
                self._originals[site].weight.copy_(weight)  # pyright: ignore
                delattr(self._originals[site], _FOLDED)
        self._unfolded = {}
        for site, module in self._originals.items():
            _replace(self.model, site, module)
        self._originals = {}


def attach(
    model: nn.Module,
    pool: Pool,
    router: Router,
    *,
    expert_dtype: torch.dtype | None = None,
    prepared: Prepared | None = None,
    kernel: str | None = None,
    expert_memory: int | None = None,
) -> Attached:
    """Replace every site of a pool by a routed one, all of them or none.

    `expert_dtype` is the storage of the stacked experts (default: the model's own, or on the CPU bfloat16 where all
    files hold that); `prepared` is what the router made of this pool before, where that exists; `kernel` (native,
    triton, torch, reference; default `$GLIDER_KERNEL`, else the best that can run each call) computes the experts. With
    `expert_memory` (bytes) and experts that take more, each site holds those used last, and others are read from their
    files when a token asks for them. Raises `ConfigError` where not one expert fits into that, `PoolError` for a site
    the model does not have, or has with other widths, `RouterError` where the pool cannot serve the router, and
    `KernelError` for a kernel that is not there.
    """
    prepared = prepared or router.prepare(pool)
    originals = {name: _find(model, name, prepared) for name in prepared.sites}
    attached = Attached(model, router, prepared, originals)
    uses_global = prepared.global_term is not None
    stored = {name: _stored(originals[name], name, prepared, expert_dtype) for name in prepared.sites}
    places = None if expert_memory is None else places_within(expert_memory, prepared, stored)
    banks = _banks(originals, prepared, stored, places)
    routed = {}
    for name, site in prepared.sites.items():
        site = site.to(_device(originals[name]))
        layer = RoutedLinear(originals[name], site, banks[name], router, attached.context, uses_global, kernel)
        routed[name] = layer.train(originals[name].training)
    for name, module in routed.items():
        _replace(model, name, module)
    return attached


def _banks(
    originals: dict[str, nn.Module], prepared: Prepared, stored: dict[str, torch.dtype], places: int | None
) -> dict[str, Bank | HotBank]:
    """The bank of every site; pages of the experts' files are given back on the way."""
    found: dict[str, Bank | HotBank] = {}
    for count, name in enumerate(prepared.sites):
        if places is None:
            bank = Bank.of(name, prepared.experts, stored[name])
        else:
            bank = HotBank(name, prepared.experts, places, stored[name])
        found[name] = bank.to(_device(originals[name]))
        if count % _RELEASE == _RELEASE - 1 or count == len(prepared.sites) - 1:
            for expert in prepared.experts:
                if isinstance(expert, Expert):
                    expert.release()
    return found


def _device(original: nn.Module) -> torch.device:
    weight = next(original.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def _stored(original: nn.Module, site: str, prepared: Prepared, wanted: torch.dtype | None) -> torch.dtype:
    """The dtype in which a site's experts are stored."""
    weight = next(original.parameters(), None)
    own = weight.dtype if weight is not None and weight.is_floating_point() else torch.float32
    return storage(site, prepared.experts, wanted or own, wanted is None and _device(original).type == "cpu")


def _find(model: nn.Module, name: str, prepared: Prepared) -> nn.Module:
    owner = next(expert for expert in prepared.experts if name in expert.sites)
    wanted = owner.sites[name]
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise PoolError(
            f"a module {name} in the base model, as expert {owner.name} adapts it",
            "no such module",
            "The pool is for another architecture; give the base it was made for.",
        ) from None
    if isinstance(module, RoutedLinear) or hasattr(module, _FOLDED):
        raise PoolError("a model with no pool attached", f"a routed module at {name}", "Call detach() first.")
    got: Any = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    if got != (wanted.in_features, wanted.out_features):
        raise PoolError(
            f"a linear module {wanted.in_features} -> {wanted.out_features} at {name} (expert {owner.name})",
            f"{type(module).__name__} {got[0]} -> {got[1]}",
            "The pool is for another architecture; give the base it was made for.",
        )
    return module


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
