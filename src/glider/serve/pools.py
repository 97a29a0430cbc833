"""The served pools over one base model, and the names under which clients ask for them."""

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glider.config import repeated
from glider.errors import ConfigError, GliderError
from glider.experts.gains import Gain, read_gains
from glider.inference.model import RoutedModel
from glider.routing.base import Observer, support_of
from glider.serve.errors import ApiError
from glider.serve.settings import ServeSettings
from glider.serve.steering import Way

if TYPE_CHECKING:
    from glider.experts.pool import Pool
    from glider.inference.spec import ModelSpec
    from glider.layers.attach import Generation, Storage

log = logging.getLogger("glider.serve")


@dataclass
class ServedPool:
    """A pool with the generation that serves the requests to come. Other generations live until their last request."""

    name: str
    model: RoutedModel
    generation: "Generation"
    storage: "Storage"
    since: int = field(default_factory=lambda: int(time.time()))
    alone: dict[str, "Generation"] = field(default_factory=dict)  # adapters that no query is sent to, by name
    numbers: dict[int, int] = field(default_factory=dict)  # of this pool's generations
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _gains: dict[str, Gain] | None = field(default=None, init=False, repr=False)  # of this generation, once read

    def __post_init__(self) -> None:
        self.number(self.generation)

    @property
    def names(self) -> list[str]:
        """Experts that can be chosen."""
        return self.generation.names

    @property
    def singles(self) -> list[str]:
        """Experts of the pool that are served by their own name."""
        return [name for name in self.names if name in self.model.pool.names]

    @property
    def gains(self) -> dict[str, Gain]:
        """What experts gain on their own tasks, by `gains.json`: read once a generation, none where it is bad."""
        if self._gains is None:
            try:
                self._gains = read_gains(self.model.pool.path, self.model.pool.index)
            except GliderError as fault:
                log.warning("the gains of the pool %s: %s", self.name, fault)
                self._gains = {}
        return self._gains

    def number(self, generation: "Generation") -> int:
        """The number that clients know a generation by. It counts this pool's alone: others' are not theirs to see."""
        return self.numbers.setdefault(generation.number, len(self.numbers) + 1)

    def serve(self, pool: "Pool", generation: "Generation") -> None:
        """Serve the requests to come by this state of the pool, whose generation is held for them. Called where
        requests are prepared, one after the other, so that none is prepared by halves of two states."""
        before = self.generation
        self.model.pool, self.generation, self._gains = pool, generation, None
        self.model.attached.give_back(before)


@dataclass(frozen=True)
class Target:
    """The meaning of a model's name: a pool, and how its requests are answered."""

    name: str
    pool: ServedPool
    way: Way
    shared: bool = False  # the base of several pools, whose requests are no single pool's

    def take(self) -> "Generation":
        """The generation that answers now, for one more request; `give_back` of the attached pool ends that.

        Raises a 404 `ApiError` where its expert or adapter has gone meanwhile.
        """
        if self.way.kind == "single" and self.way.expert not in self.pool.names:
            raise _unknown(self.name)
        if self.way.kind != "alone":
            return self.pool.model.attached.take(self.pool.generation)
        generation = self.pool.alone.get(self.way.expert or "")
        if generation is None:
            raise _unknown(self.name)
        return self.pool.model.attached.take(generation)

    @property
    def label(self) -> str:
        """Its name for metrics: one of those that are listed."""
        return self.pool.name if self.way.router is not None else self.name

    @property
    def pool_label(self) -> str:
        """The pool that its requests are counted for: those of a shared base for none, under the base's name."""
        return self.name if self.shared else self.pool.name


class Pools:
    """Pools over one base model, found by a client's words."""

    def __init__(self, pools: dict[str, ServedPool]):
        self.pools = pools
        first = next(iter(pools.values()))
        self.base_name = first.model.base.identity.model_id
        self.tokenizer = first.model.tokenizer
        self._check_names()

    @classmethod
    def load(cls, spec: "ModelSpec", settings: ServeSettings) -> "Pools":
        """Load the base model and every pool; raises the `GliderError` of whatever does not fit."""
        pools: dict[str, ServedPool] = {}
        first: RoutedModel | None = None
        for name, place in settings.pools.items():
            one = spec.model_copy(update={"pool": place})
            model = one.load() if first is None else one.beside(first)
            first = first or model
            pools[name] = ServedPool(name, model, model.attached.take(), one.storage)
        if len(pools) > 1:
            for name, pool in pools.items():
                support = support_of(pool.generation.router)
                whole = support.packed and support.chunked and support.cache and support.mixed
                if isinstance(pool.generation.router, Observer) or not whole:
                    got = f"{type(pool.generation.router).__name__} (pool {name})"
                    raise ConfigError("a router that decides token by token, for several pools", got, "Serve one pool.")
        return cls(pools)

    @property
    def first(self) -> ServedPool:
        return next(iter(self.pools.values()))

    def visible(self, allowed: Collection[str] | None) -> list[ServedPool]:
        """The pools that a key may see (None: all)."""
        return [pool for name, pool in self.pools.items() if allowed is None or name in allowed]

    def target(self, name: str, allowed: Collection[str] | None = None) -> Target:
        """What a model's name means to whoever may see these pools; raises a 404 `ApiError` for every other name."""
        visible = self.visible(allowed)
        for pool in visible:
            if name == pool.name:
                return Target(name, pool, Way("routed"))
            if name in self.expert_names(pool):
                return Target(name, pool, Way("single", expert=self.expert_names(pool)[name]))
            if name in self.adapter_names(pool):
                return Target(name, pool, Way("alone", expert=self.adapter_names(pool)[name]))
            if name.startswith(f"{pool.name}:"):
                return Target(name, pool, Way("routed", router=name[len(pool.name) + 1 :]))
        if name == self.base_name and visible:
            return Target(name, visible[0], Way("base"), shared=len(self.pools) > 1)
        raise _unknown(name)

    def names_of(self, allowed: Collection[str] | None) -> Collection[str] | None:
        """Pools and models that are nobody else's, of a key that does not see all pools; None of one that does."""
        visible = self.visible(allowed)
        if len(visible) == len(self.pools):
            return None
        return {card["id"] for card in self.cards([pool.name for pool in visible])} - {self.base_name}

    def pool_of(self, name: str | None, allowed: Collection[str] | None = None) -> ServedPool:
        """The pool of a model's name; without one, the only pool that may be seen."""
        visible = self.visible(allowed)
        if name is not None and (name != self.base_name or len(visible) < 2):
            return self.target(name, allowed).pool
        if len(visible) != 1:
            raise ApiError(400, "there are several pools: name one", param="model", code="missing_required_parameter")
        return visible[0]

    def expert_names(self, pool: ServedPool) -> dict[str, str]:
        """Names of the experts' models: their own, or POOL/NAME where there are several pools."""
        return {self.name_in(pool, name): name for name in pool.singles}

    def adapter_names(self, pool: ServedPool) -> dict[str, str]:
        """Those of adapters that are served by their name alone."""
        return {self.name_in(pool, name): name for name in list(pool.alone)}

    def name_in(self, pool: ServedPool, name: str) -> str:
        """What an expert of a pool is called as a model."""
        return f"{pool.name}/{name}" if len(self.pools) > 1 else name

    def cards(self, allowed: Collection[str] | None = None) -> list[dict[str, Any]]:
        """The list of models, in OpenAI's form with vLLM's `root` and `parent`."""
        cards, seen = [], self.visible(allowed)
        for pool in seen:
            context = {"max_model_len": pool.model.encoder.context, "generation": pool.number(pool.generation)}
            cards.append(_card(pool.name, pool.since, None, self.base_name, kind="pool", **context))
            cards += [
                _card(model, pool.since, pool.name, name, kind="expert", **context)
                for model, name in self.expert_names(pool).items()
            ]
            cards += [
                _card(model, pool.since, self.base_name, name, kind="adapter", **context)
                for model, name in self.adapter_names(pool).items()
            ]
        if seen:
            context = {"max_model_len": seen[0].model.encoder.context}
            cards.append(_card(self.base_name, seen[0].since, None, self.base_name, kind="base", **context))
        return cards

    def router_card(self, pool: ServedPool, name: str) -> dict[str, Any]:
        """The card of a pool under another router, by a name that no list has."""
        context = {"max_model_len": pool.model.encoder.context, "generation": pool.number(pool.generation)}
        return _card(name, pool.since, pool.name, self.base_name, kind="router", **context)

    def _check_names(self) -> None:
        names = [self.base_name, *self.pools]
        names += [model for pool in self.pools.values() for model in self.expert_names(pool)]
        if twice := sorted(repeated(names)):
            got = f"{', '.join(twice)} twice"
            raise ConfigError("models of unlike names", got, "Name the pool otherwise: --pool NAME=DIRECTORY.")


def _unknown(name: str) -> ApiError:
    return ApiError(404, f"no model {name[:200]!r} here; see /v1/models", param="model", code="model_not_found")


def _card(name: str, created: int, parent: str | None, root: str, **more: Any) -> dict[str, Any]:
    head = {"id": name, "object": "model", "created": created, "owned_by": "glider"}
    return {**head, "root": root, "parent": parent, **more}
