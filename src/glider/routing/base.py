"""What a router is: settings that turn scores into a decision. A method of the literature is a router."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch

from glider.errors import RouterError
from glider.experts.expert import ExpertLike
from glider.experts.pool import Pool
from glider.registry import Registry
from glider.shapes import Bool, Float, Int, Tensor

routers: "Registry[Router]" = Registry("router", "glider.routers", ("glider.routing.methods",), RouterError)
router = routers.register


@dataclass(frozen=True)
class Decision:
    """Which experts each token uses, and with which weights."""

    experts: Int[Tensor, "T K"]
    weights: Float[Tensor, "T K"]
    scores: Float[Tensor, "T E"] | None = None  # before the softmax, for traces


@dataclass(frozen=True)
class Condition:
    """The global term of a batch: a score per query and expert, how much it counts for the query, and its source."""

    global_scores: Float[Tensor, "B E"]
    alpha: Float[Tensor, " B"]
    signal: str = ""

    @property
    def term(self) -> Float[Tensor, "B E"]:
        """alpha * global."""
        return self.alpha[:, None] * self.global_scores


@dataclass(frozen=True)
class Site:
    """What a router has prepared for one site: a row per expert, zero where the expert is absent."""

    name: str
    vectors: Float[Tensor, "E D"] | None
    absent: Bool[Tensor, " E"]

    def to(self, device: torch.device) -> "Site":
        """The same on another device."""
        vectors = None if self.vectors is None else self.vectors.to(device)
        return Site(self.name, vectors, self.absent.to(device))


Need = Literal["instructions", "grams", "inputs", "hidden"]


@dataclass(frozen=True)
class Asked:
    """What is known of a batch of queries. A global signal names the parts that it needs; the others may be None."""

    instructions: Float[Tensor, "B G"] | None = None  # embedded descriptions
    grams: tuple[tuple[Int[Tensor, " _"], ...], ...] | None = None  # n-grams of each query and of its examples' inputs
    inputs: Float[Tensor, "B G"] | None = None  # mean embedding of the query's text and of its examples' inputs
    hidden: Float[Tensor, "B H"] | None = None  # mean hidden state of the bare base model on the same texts


@runtime_checkable
class GlobalScores(Protocol):
    """Scores each expert of a pool for a whole query; about 1 for a query's own expert, near 0 for the others."""

    @property
    def needs(self) -> frozenset[Need]:
        """The parts of `Asked` that are read."""
        ...

    def of(self, asked: Asked, without: int | None = None) -> Float[Tensor, "B E"]:
        """The scores; `without` an expert, they are those of the pool that lacks it, its own minus infinity."""
        ...


@dataclass(frozen=True)
class GlobalTerm:
    """The global scores of a pool, and the constants of alpha = gamma * [max > p] + beta."""

    scores: GlobalScores
    p: float
    gamma: float
    beta: float
    signal: str = "instruction"


@dataclass(frozen=True)
class Prepared:
    """What a router makes of a pool, once: the experts that can be chosen (in column order) and each site's vectors.

    With one expert only, every decision is known before: such a router is static, and its expert can be folded.
    """

    experts: tuple[ExpertLike, ...]
    sites: dict[str, Site]
    global_term: GlobalTerm | None = None


@runtime_checkable
class Router(Protocol):
    """Frozen settings of a method. Every value a router computes is returned; nothing is stored."""

    def prepare(self, pool: Pool) -> Prepared:
        """Whatever depends on the pool alone. Raises `RouterError` where the pool lacks what the method needs."""
        ...

    def condition(self, prepared: Prepared, asked: Asked) -> Condition | None:
        """The global term of a batch of queries, or None for a method without one."""
        ...

    def route(self, site: Site, x: Float[Tensor, "T D"], condition: Float[Tensor, "T E"] | None) -> Decision:
        """Decide for each token; `condition` is the global term of the token's query."""
        ...


@runtime_checkable
class Observer(Protocol):
    """A router that decides by query from what the prompt's tokens say: the prompt runs twice.

    In the first pass there is no condition and `route` gives token scores; their mean makes the condition that holds
    for the second pass and for every new token.
    """

    def observe(self, scores: Float[Tensor, "B E"]) -> Condition:
        """The condition of a batch from the mean score of each expert over its prompt's tokens and all sites."""
        ...


def absent_at(site: str, experts: Sequence[ExpertLike]) -> Bool[Tensor, " E"]:
    """True for every expert without a LoRA pair at a site."""
    return torch.tensor([site not in expert.sites for expert in experts])
