"""A router: settings that turn scores into a decision. Each method of the literature is a router."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch

from glider.errors import RouterError
from glider.experts.expert import ExpertLike
from glider.experts.pool import Pool
from glider.registry import Registry
from glider.routing.condition import Condition
from glider.shapes import Bool, Float, Int, Tensor

if TYPE_CHECKING:
    from glider.verdicts.judge import Judge

routers: "Registry[Router]" = Registry("router", "glider.routers", ("glider.routing.methods",), RouterError)
router = routers.register


@dataclass(frozen=True)
class Decision:
    """Token choice: which experts each token uses, and with which weights.

    A token may name an expert once, and one with a weight of 0 adds nothing. Weights below zero subtract.
    """

    experts: Int[Tensor, "T K"]
    weights: Float[Tensor, "T K"]
    scores: Float[Tensor, "T E"] | None = None  # before the softmax, for traces

    @property
    def slots(self) -> "SlotDecision":
        """The same in the general form: a slot for each token and place, its input that token."""
        tokens, places = self.experts.shape
        owner = torch.arange(tokens, device=self.experts.device).repeat_interleave(places)  # (S,)
        one_hot = torch.nn.functional.one_hot(owner, tokens).to(self.weights.dtype)  # (S, T)
        return SlotDecision(self.experts.flatten(), one_hot, one_hot.T * self.weights.flatten(), self.scores)


@dataclass(frozen=True)
class SlotDecision:
    """The general form (arXiv 2401.15969, section 2): each slot belongs to an expert and has a mixture of tokens as its
    input, each token has a mixture of the slots' outputs added.

    y_t += sum over s of combine[t, s] * E_s(sum over u of dispatch[s, u] x_u). The tokens are all of a call, so that
    only a router that says so (`Support`) may mix those of several queries or passes.
    """

    experts: Int[Tensor, " S"]
    dispatch: Float[Tensor, "S T"]
    combine: Float[Tensor, "T S"]
    scores: Float[Tensor, "T E"] | None = None

    def token_weights(self, count: int) -> Float[Tensor, "T E"]:
        """How much of each of `count` experts a token has: its weights of their slots added up."""
        dense = self.combine.new_zeros(len(self.combine), count)
        return dense.index_add(1, self.experts, self.combine)


@dataclass(frozen=True)
class Site:
    """A router's prepared tensors for one site: named, with a row for each expert, zero where it is absent."""

    name: str
    absent: Bool[Tensor, " E"]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def to(self, device: torch.device) -> "Site":
        """The same on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return Site(self.name, self.absent.to(device), moved)


@dataclass(frozen=True)
class Block:
    """What a router has prepared for one attention block of the base, which prompts may skip."""

    name: str
    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def to(self, device: torch.device) -> "Block":
        """The same on another device."""
        return Block(self.name, {name: tensor.to(device) for name, tensor in self.tensors.items()})


@dataclass(frozen=True)
class Support:
    """Where a router's decisions are right. A decision that looks at one token at a time is right everywhere.

    Raises: `RouterError` for `sequences` beside `packed` or `chunked`, whose passes do not show which tokens make a
    prompt.
    """

    cache: bool = True  # a new token is decided without those before it
    packed: bool = True  # tokens of several queries may share a pass without padding
    chunked: bool = True  # a prompt may be spread over several passes
    mixed: bool = True  # a batch may hold several queries
    sequences: bool = False  # a prompt's tokens are decided together (`SequenceRouter`), what follows it one by one

    def __post_init__(self) -> None:
        if self.sequences and (self.packed or self.chunked):
            expected = "packed=False and chunked=False of a router that decides a prompt's tokens together"
            got = f"packed={self.packed}, chunked={self.chunked}"
            raise RouterError(expected, got, "Write Support(packed=False, chunked=False, sequences=True).")


Need = Literal["instructions", "grams", "inputs", "hidden"]


@dataclass(frozen=True)
class QueryFeatures:
    """The features of a batch of queries. A global signal names the parts that it needs; the others may be None."""

    count: int
    instructions: Float[Tensor, "B G"] | None = None  # embedded descriptions
    grams: tuple[tuple[Int[Tensor, " _"], ...], ...] | None = None  # n-grams of each query and of its examples' inputs
    inputs: Float[Tensor, "B G"] | None = None  # mean embedding of the query's text and of its examples' inputs
    hidden: Float[Tensor, "B H"] | None = None  # mean hidden state of the bare base model on the same texts


@runtime_checkable
class GlobalScores(Protocol):
    """Scores each expert of a pool for a whole query; about 1 for a query's own expert, near 0 for the others."""

    @property
    def needs(self) -> frozenset[Need]:
        """The parts of the features that are read."""
        ...

    def of(self, features: QueryFeatures, without: int | None = None) -> Float[Tensor, "B E"]:
        """The scores. With `without=i`, score as if expert i were absent; its column is -inf."""
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
    """A router's preparation of a pool, made once: the experts to choose from (in column order) and each site's
    tensors.

    `described_term` serves the queries that bring a description, where `global_term` does not read descriptions and the
    pool can. With one expert only, every decision is known before: such a router is static, and its expert can be
    folded. `judge` gives the verdicts, where queries have some; a router's own `prepare` leaves it out. `blocks` are
    the base's attention blocks that prompts may skip (`BlockRouter`), by name.
    """

    experts: tuple[ExpertLike, ...]
    sites: dict[str, Site]
    global_term: GlobalTerm | None = None
    described_term: GlobalTerm | None = None
    judge: "Judge | None" = None
    blocks: Mapping[str, Block] = field(default_factory=dict)


@runtime_checkable
class Router(Protocol):
    """Frozen settings of a method. Every value a router computes is returned; nothing is stored.

    A router may have an attribute `support` (`Support`); without one its decisions are right everywhere. One with a
    true attribute `abstains` uses verdicts where the pool is calibrated for them, unless the caller says otherwise. An
    attribute `experts` names the ones that it needs, where it needs no others: these load from a broken pool.
    """

    def prepare(self, pool: Pool) -> Prepared:
        """Compute whatever depends on the pool alone. Raises `RouterError` where the pool lacks what the method
        needs."""
        ...

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        """The condition of a batch of queries: its global term, where the method has one."""
        ...

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision | SlotDecision:
        """Decide for each token; `term` is the global term of the token's query."""
        ...


@runtime_checkable
class Observer(Protocol):
    """A router that decides for a whole query from its prompt's tokens: the prompt runs twice.

    In the first pass there is no term and `route` gives token scores; their mean makes the condition that holds for the
    second pass and for every new token. One with an attribute `observes` of "last" gets those of the prompt's last
    token, at the sites where it gives any.
    """

    def observe(self, scores: Float[Tensor, "B E"]) -> Condition:
        """The condition of a batch from the mean score of each expert over its prompt's tokens and all sites."""
        ...


@runtime_checkable
class SequenceRouter(Protocol):
    """A router whose decision for a prompt's token depends on the prompt's other tokens; its `support` says so.

    `route` is for tokens that stand alone: those that are generated, and those of a decoder beside an encoder.
    """

    def route_sequences(
        self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None, sequence_of: Int[Tensor, " T"]
    ) -> Decision | SlotDecision:
        """Decide for tokens of which those of one number belong to one prompt; -1 is padding, which gets no expert."""
        ...


@runtime_checkable
class BlockRouter(Protocol):
    """A router under which prompts skip attention blocks of the base; its `support` says `sequences`."""

    def computed(self, block: Block, x: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """1 for each prompt that the block is computed for, 0 where it is skipped, by the mean of what it sees."""
        ...


def support_of(router: Router) -> Support:
    """A router's declared support; by default its decisions are right everywhere."""
    return getattr(router, "support", Support())


def absent_at(site: str, experts: Sequence[ExpertLike]) -> Bool[Tensor, " E"]:
    """True for every expert without a LoRA pair at a site."""
    return torch.tensor([site not in expert.sites for expert in experts])
