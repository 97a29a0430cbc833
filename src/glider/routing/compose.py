"""A method as a composition: a local score, a global term, a selection. Each part is written once."""

from dataclasses import fields, is_dataclass
from typing import Protocol, runtime_checkable

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Asked, Condition, Decision, GlobalTerm, Prepared, Site
from glider.routing.linear import LinearLocal, LinearTopK
from glider.routing.select import Select, TopK
from glider.shapes import Float, Tensor


@runtime_checkable
class Local(Protocol):
    """Scores each expert for each token at a site."""

    def prepare(self, pool: Pool) -> dict[str, Site]:
        """What the score needs of each site; raises `RouterError` where an expert lacks it."""
        ...

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        """Minus infinity where an expert is absent."""
        ...


@runtime_checkable
class Global(Protocol):
    """Scores each expert for a whole query."""

    def prepare(self, pool: Pool) -> GlobalTerm:
        """The scores and the constants of alpha; raises `RouterError` where an expert lacks what they need."""
        ...


class Composed:
    """A router made of parts: score = alpha * global + local, then a selection. Subclasses name the parts."""

    select: Select

    @property
    def local(self) -> Local:
        """The local score."""
        raise NotImplementedError

    @property
    def global_term(self) -> Global | None:
        """The global term, if the method has one."""
        return None

    def prepare(self, pool: Pool) -> Prepared:
        if not len(pool):
            raise RouterError("a pool with experts", "an empty one", "Add experts: `glider pool add`.")
        sites = self.local.prepare(pool)
        term = self.global_term.prepare(pool) if self.global_term is not None else None
        _require_enough(_chosen_count(self), len(pool))
        return Prepared(pool.experts, sites, term)

    def condition(self, prepared: Prepared, asked: Asked) -> Condition | None:
        term = prepared.global_term
        if term is None:
            return None
        scores = term.scores.of(asked)  # (B, E)
        confident = scores.amax(dim=-1) > term.p  # (B,)
        return Condition(scores, term.gamma * confident.float() + term.beta, term.signal)

    def route(self, site: Site, x: Float[Tensor, "T D"], condition: Float[Tensor, "T E"] | None) -> Decision:
        scores = self.local.scores(x, site)
        return self.select(scores if condition is None else scores + condition)

    def linear(self, site: Site) -> LinearTopK | None:
        """The same decision as a description, where the local score and the selection have one."""
        own_route = type(self).route is not Composed.route
        if own_route or type(self.select) is not TopK or not isinstance(self.local, LinearLocal):
            return None
        return LinearTopK(self.local.linear(site), self.select.k, self.select.renormalise)


def _chosen_count(router: Composed) -> int | None:
    """K where the caller chose it; None for the method's own, which a smaller pool only clips."""
    chosen = fields(router) if is_dataclass(router) else ()
    for field in (field for field in chosen if field.name in ("select", "k")):
        value = getattr(router, field.name)
        if value != field.default:
            return value if isinstance(value, int) else getattr(value, "k", None)
    return None


def _require_enough(count: int | None, experts: int) -> None:
    if count is not None and count > experts:
        raise RouterError(f"k of at most {experts}, the pool's experts", str(count), "Keep fewer experts.")
