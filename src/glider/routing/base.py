"""What a router is: settings that turn scores into a decision. A method of the literature is a router."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from glider.errors import RouterError
from glider.experts.expert import ExpertLike
from glider.experts.pool import Pool
from glider.registry import Registry
from glider.shapes import Bool, Float, Int, Tensor

routers: "Registry[Router]" = Registry(
    "router",
    "glider.routers",
    (
        *("glider.routing.glider", "glider.routing.phatgoose", "glider.routing.single"),
        *("glider.routing.arrow", "glider.routing.spectr", "glider.routing.glider_spectral"),
        *("glider.routing.tasklevel", "glider.routing.merging", "glider.routing.lorahub"),
        *("glider.routing.oracle", "glider.routing.retrieval"),
    ),
    RouterError,
)
router = routers.register


@dataclass(frozen=True)
class Decision:
    """Which experts each token uses, and with which weights."""

    experts: Int[Tensor, "T K"]
    weights: Float[Tensor, "T K"]
    scores: Float[Tensor, "T E"] | None = None  # before the softmax, for traces


@dataclass(frozen=True)
class Condition:
    """The global term of a batch: a score per query and expert, and how much it counts for the query."""

    global_scores: Float[Tensor, "B E"]
    alpha: Float[Tensor, " B"]

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


@dataclass(frozen=True)
class GlobalTerm:
    """The instruction embeddings of a pool's experts, and the constants of alpha = gamma * [max > p] + beta."""

    instructions: Float[Tensor, "E G"]  # unit length
    p: float
    gamma: float
    beta: float


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

    def condition(self, prepared: Prepared, queries: Float[Tensor, "B G"]) -> Condition | None:
        """The global term of a batch of queries (embedded), or None for a method without one."""
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
