"""Install a routed pool on a transformers model, change it while it runs, and take it off again."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from glider.errors import PoolError, RouterError
from glider.experts.base_identity import identify, require_same_base
from glider.experts.pool import Pool
from glider.layers.banks import banks_of, device_of, stored_dtype, with_shared_tensors
from glider.layers.blocks import Blocks
from glider.layers.context import Batch, RoutingContext
from glider.layers.folding import fold_into, require_every_row, require_foldable, require_unfolded, unfold_from
from glider.layers.hot_bank import ExpertMemory, HotBank, places_within
from glider.layers.plain_calls import PlainCalls
from glider.layers.routed_linear import RoutedLinear
from glider.layers.routed_site import RoutedSite
from glider.layers.sequences import watch_passes
from glider.layers.trace import Recorder
from glider.layers.widths import linear_widths
from glider.routing.base import Prepared, Router, support_of
from glider.routing.condition import Condition
from glider.routing.preparation import prepare, require_router, ungated
from glider.routing.specification import parsed, router_from
from glider.shapes import Int, Tensor


@dataclass(frozen=True)
class Storage:
    """How the stacked experts of a generation are held and computed.

    `expert_dtype` (default: the model's own, or on the CPU bfloat16 where all files hold that); `kernel` (native,
    triton, torch, reference; default `$GLIDER_KERNEL`, else the best that can run each call) computes the experts. With
    `expert_memory` (bytes) and experts that take more, each site holds those used last, and others are read from their
    files when a token asks for them.
    """

    expert_dtype: torch.dtype | None = None
    kernel: str | None = None
    expert_memory: int | None = None


@dataclass(frozen=True)
class Generation:
    """One state of an attached pool: the router and its preparation of the pool. Its number is never reused."""

    number: int
    router: Router
    prepared: Prepared

    @property
    def names(self) -> list[str]:
        """Names of the experts that can be chosen, in column order."""
        return [expert.name for expert in self.prepared.experts]


class Attached:
    """A pool installed on a model, which remains the same transformers model.

    Queries keep the generation of the pool that they began with: `replace` makes a new one for new queries, and the
    experts of an older one stay in memory until its last query has ended. Stacked experts and gates that are those of
    an older generation are shared with it.
    """

    def __init__(self, model: nn.Module):
        self.model, self.context = model, RoutingContext()
        self._originals: dict[str, nn.Module] = {}
        self._layers: dict[str, RoutedLinear] = {}
        self._blocks = Blocks(model, self.context)
        self._unfolded: dict[str, torch.Tensor] = {}
        self.closing = ExitStack()  # what ends with `detach`
        self._watched = False  # by hooks that tell which tokens stand together
        self._generations: dict[int, Generation] = {}
        self._last = 0  # number of a generation; what caches keep is marked by it
        self._running: dict[int, int] = {}  # queries in flight of each generation
        self._here = threading.local()  # how many of them are this thread's
        self._claims = 0  # of `detach`, `fold` and `unfold` that wait for them; queries that come wait in turn
        self._changed = threading.Condition()

    @property
    def generation(self) -> Generation:
        """The generation that serves new queries; raises `RouterError` after `detach`."""
        generation = self._generations.get(self.context.current)
        if generation is None:
            raise RouterError("an attached pool", "one that was detached", "Attach it again.")
        return generation

    @property
    def router(self) -> Router:
        return self.generation.router

    @property
    def prepared(self) -> Prepared:
        return self.generation.prepared

    @property
    def attached(self) -> bool:
        """Whether the pool is still on the model."""
        return self.context.current in self._generations

    @property
    def folded(self) -> bool:
        """Whether an expert is in the base's own weights."""
        return bool(self._unfolded)

    @property
    def expert_memory(self) -> ExpertMemory | None:
        """Statistics of holding experts in limited memory; None where all of them are in memory."""
        layers = (module for module in self.model.modules() if isinstance(module, RoutedLinear))
        serving = [layer.current.bank for layer in layers if self.context.current in layer._served]
        banks = [bank for bank in serving if isinstance(bank, HotBank)]
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
        recorder: Recorder | None = None,
        generation: Generation | None = None,
    ) -> Iterator[None]:
        """Route every forward pass inside the block by this condition, in this thread (None: by tokens alone).

        `generation` is the one that the condition was made for, held by the caller; by default the current one.
        """
        with self.hold(generation) as held:
            self.require_served(condition)
            batch = Batch.of(condition, token_to_query, recorder, held.number)
            with self.context.use(batch):
                yield

    def require_served(self, condition: Condition | None) -> None:
        """Raise `RouterError` for rows without the expert that is folded into the base's weights."""
        if self._unfolded:
            require_every_row(condition)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Run every forward pass inside the block without experts, in this thread."""
        with self.hold() as generation:
            batch = Batch.of(Condition.nobody(1), generation=generation.number)
            with self.context.use(batch):
                yield

    @contextmanager
    def hold(self, generation: Generation | None = None, *, begins: bool = False) -> Iterator[Generation]:
        """The current generation, or one that is held already, which stays in memory until the block ends.

        A query that `begins` lets `detach` and `fold` go first.
        """
        held = self.take(generation, begins=begins)
        self._here.count = getattr(self._here, "count", 0) + 1
        try:
            yield held
        finally:
            self._here.count -= 1
            self.give_back(held)

    def take(self, generation: Generation | None = None, *, begins: bool = False) -> Generation:
        """The current generation, or one that is held already, which stays in memory until it is given back."""
        with self._changed:
            if begins and generation is None and not getattr(self._here, "count", 0):
                self._changed.wait_for(lambda: not self._claims)
            generation = self.generation if generation is None else generation
            self._running[generation.number] = self._running.get(generation.number, 0) + 1
            return generation

    def give_back(self, generation: Generation) -> None:
        """End what `take` began; the experts of an older generation go with its last query."""
        number = generation.number
        with self._changed:
            self._running[number] -= 1
            if not self._running[number]:
                del self._running[number]
                if number != self.context.current:
                    self._drop(number)
            self._changed.notify_all()

    def replace(self, router: Router, prepared: Prepared, storage: Storage) -> Generation:
        """Serve new queries by another router or pool; those in flight keep theirs.

        All sites or none: a pool that does not fit the model raises what `attach` raises and changes nothing.
        """
        with self._changed:
            if self._unfolded:
                raise RouterError("experts beside the base's weights", "folded ones", "Call unfold() first.")
            before = self.context.current if self._generations else None
            number = 1 + self._last
            generation = Generation(number, ungated(router), with_shared_tensors(prepared, self._layers))
            self._blocks.require(prepared)
            sites = self._sites(generation, storage)
            for name, site in sites.items():
                self._layer(name, site).put(number, site)
            self._blocks.put(number, generation.router, prepared.blocks)
            self._generations[number], self._last = generation, number
            self.context.serve(number, prepared.global_term is not None)
            if support_of(generation.router).sequences and not self._watched:
                watch_passes(self.model, self.context, self.closing)
                self._watched = True
            if before is None:
                PlainCalls(self.context, self.hold).install(self.model, self.closing)
            elif before not in self._running:
                self._drop(before)
            return generation

    def fold(self) -> None:
        """Add a static router's one expert to the base weights, so that it costs nothing.

        `unfold` takes it out again; after `detach` it stays. The weights before are kept until then. Waits for the
        queries in flight. Raises `RouterError` for a router that decides by token, for layers that are not plain ones
        of a weight of their own, and inside a `routing` block of the same thread.
        """
        with self._idle():
            prepared = self.prepared
            if self._unfolded or not prepared.sites:
                return  # folded already, or nothing to fold
            if prepared.judge is not None:
                expected, got = "an expert for every query", "a router that leaves some to the base"
                raise RouterError(expected, got, "Load it with abstain=False, or keep it attached.")
            expert = require_foldable(self.model, self._originals, prepared)
            for site, module in self._originals.items():
                self._unfolded[site] = fold_into(module, site, expert)
                _replace(self.model, site, module)

    def unfold(self) -> None:
        """Take a folded expert out of the base weights again, to the bit, and route by it as before."""
        with self._idle():
            _ = self.generation  # after `detach` there is nothing to go by
            for site, before in self._unfolded.items():
                unfold_from(self._originals[site], before)
                _replace(self.model, site, self._layers[site])
            self._unfolded = {}

    def detach(self) -> None:
        """Restore the model exactly, when the queries in flight have ended; a folded expert stays in its weights.

        Raises `RouterError` inside a `routing` block of the same thread, which would wait for itself.
        """
        with self._changed:
            if not self._generations:
                return
        with self._idle():
            if not self._unfolded:
                for site, module in self._originals.items():
                    _replace(self.model, site, module)
            self._originals, self._layers, self._generations, self._unfolded = {}, {}, {}, {}
            self._blocks.close()
            self.closing.close()
            self._watched = False

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """No queries in flight inside the block; raises `RouterError` where this thread has one itself."""
        with self._changed:
            if getattr(self._here, "count", 0):
                raise RouterError("a pool that this thread does not use", "a block that routes", "Leave it first.")
            self._claims += 1
            try:
                self._changed.wait_for(lambda: not self._running)
                yield
            finally:
                self._claims -= 1
                self._changed.notify_all()

    def _drop(self, number: int) -> None:
        del self._generations[number]
        self._blocks.drop(number)
        for name in list(self._originals):
            layer = self.model.get_submodule(name)
            assert isinstance(layer, RoutedLinear)
            layer.drop(number)
            if not layer.sites:
                _replace(self.model, name, self._originals.pop(name))
                del self._layers[name]

    def _sites(self, generation: Generation, storage: Storage) -> dict[str, RoutedSite]:
        """What serves each site, made before anything is changed."""
        prepared = generation.prepared
        originals = {name: self._original(name, prepared) for name in prepared.sites}
        dtypes = {name: stored_dtype(originals[name], name, prepared, storage.expert_dtype) for name in prepared.sites}
        limit = storage.expert_memory
        places = None if limit is None else places_within(limit, prepared, dtypes)
        banks = banks_of(originals, prepared, dtypes, places, self._layers)
        sites = {}
        for name, site in prepared.sites.items():
            moved = site.to(device_of(originals[name]))
            sites[name] = RoutedSite(moved, banks[name], generation.router, storage.kernel)
        return sites

    def _layer(self, name: str, site: RoutedSite) -> RoutedLinear:
        """The routed layer at a site, installed if there is none yet."""
        module = self.model.get_submodule(name)
        if isinstance(module, RoutedLinear):
            return module
        layer = RoutedLinear(name, module, self.context, site.in_features, site.out_features)
        layer.train(module.training)
        self._originals[name], self._layers[name] = module, layer
        _replace(self.model, name, layer)
        return layer

    def _original(self, name: str, prepared: Prepared) -> nn.Module:
        """The base's module at a site, checked to be what the experts adapt."""
        owner = next(expert for expert in prepared.experts if name in expert.sites)
        expected = owner.sites[name]
        if name in self._originals:
            module = self._originals[name]
        else:
            try:
                module = self.model.get_submodule(name)
            except AttributeError:
                raise PoolError(
                    f"a module {name} in the base model, as expert {owner.name} adapts it",
                    "no such module",
                    "The pool is for another architecture; give the base it was made for.",
                ) from None
        require_unfolded(module, name)
        if isinstance(module, RoutedLinear):
            raise PoolError("a model with no pool attached", f"a routed module at {name}", "Call detach() first.")
        got = linear_widths(module) or (None, None)
        if got != (expected.in_features, expected.out_features):
            raise PoolError(
                f"a linear module {expected.in_features} -> {expected.out_features} at {name} (expert {owner.name})",
                f"{type(module).__name__} {got[0]} -> {got[1]}",
                "The pool is for another architecture; give the base it was made for.",
            )
        return module


def attach(
    model: nn.Module,
    pool: Pool | str | Path,
    router: Router | str = "glider",
    storage: Storage | None = None,
    prepared: Prepared | None = None,
) -> Attached:
    """Replace every site of a pool by a routed one, all of them or none.

    Arguments:
        model: A transformers model, on its device.
        pool: The opened pool, or its directory ("demo": the embedded one), which is then verified.
        router: The method, with its settings, or its name: "glider", "merge(method=ties)".
        storage: How the experts are held and computed.
        prepared: The router's earlier preparation of this pool, if there is one.

    Returns: the handle whose `detach()` restores the model.

    Raises: `ConfigError` where not one expert fits into the memory allowed, `PoolError` for a site the model does not
    have, or has with other widths, `RouterError` where the pool cannot serve the router, and `KernelError` for a kernel
    that is not there.
    """
    if not isinstance(pool, Pool):
        from glider.demo.pool import DEMO_POOL

        pool = Pool.open(DEMO_POOL if str(pool) == "demo" else pool)
        require_same_base(pool.index.base, identify(model, getattr(model, "name_or_path", "")), f"the pool {pool.path}")
        pool.verify()
    if isinstance(router, str):
        name, settings = parsed(router)
        router = router_from(name, settings)
    attached = Attached(model)
    attached.replace(require_router(router), prepared or prepare(router, pool), storage or Storage())
    return attached


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
