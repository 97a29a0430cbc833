"""A method as a composition: a local score, a global term, a selection. Each part is written once."""

from dataclasses import fields, is_dataclass
from typing import Protocol, runtime_checkable

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Decision, GlobalTerm, Prepared, QueryFeatures, SequenceRouter, Site
from glider.routing.condition import Condition
from glider.routing.linear import LinearLocal, LinearTopK
from glider.routing.local_scores.base import LocalScore
from glider.routing.select import Select, TopK
from glider.shapes import Float, Tensor


@runtime_checkable
class Global(Protocol):
    """Scores each expert for a whole query."""

    def prepare(self, pool: Pool) -> GlobalTerm:
        """The scores and the constants of alpha; raises `RouterError` where an expert lacks what they need."""
        ...


@runtime_checkable
class GlobalByDescription(Protocol):
    """A global part that has another term for queries which bring a description."""

    def prepare_described(self, pool: Pool) -> GlobalTerm | None:
        """That term; None where `prepare` serves them, or where the pool has none."""
        ...


class Composed:
    """A router made of parts: score = alpha * global + local, then a selection. Subclasses name the parts."""

    select: Select

    def local_score(self) -> LocalScore:
        """The local score."""
        raise NotImplementedError

    def global_part(self) -> Global | None:
        """The global term, if the method has one."""
        return None

    def selection(self) -> Select:
        """What keeps experts and weighs them."""
        return self.select

    def prepare(self, pool: Pool) -> Prepared:
        if not len(pool):
            raise RouterError("a pool with experts", "an empty one", "Add experts: `glider pool add`.")
        sites, part = self.local_score().prepare(pool), self.global_part()
        term = None if part is None else part.prepare(pool)
        described = part.prepare_described(pool) if isinstance(part, GlobalByDescription) else None
        _require_enough(_selected_count(self), len(pool))
        return Prepared(pool.experts, sites, term, described)

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        term = prepared.global_term
        if term is None:
            return Condition.local(features.count)
        scores = term.scores.of(features)  # (B, E)
        confident = scores.amax(dim=-1) > term.p  # (B,)
        return Condition.of(scores, term.gamma * confident.float() + term.beta, term.signal)

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        scores = self.local_score().scores(x, site)
        return self.selection()(scores if term is None else scores + term)

    def linear(self, site: Site) -> LinearTopK | None:
        """The same decision as a description, where the local score and the selection have one, and tokens choose one
        by one."""
        return None if isinstance(self, SequenceRouter) else declared(self, site)


def declared(router: Composed, site: Site) -> LinearTopK | None:
    """What `route` of a composition decides, as a description; None where it has none."""
    if type(router).route is not Composed.route:
        return None
    select, local = router.selection(), router.local_score()
    if type(select) is not TopK or not isinstance(local, LinearLocal):
        return None
    return LinearTopK(local.linear(site), select.k, select.renormalise)


def _selected_count(router: Composed) -> int | None:
    """K where the caller chose it; None for the method's own, which a smaller pool only clips."""
    settings = fields(router) if is_dataclass(router) else ()
    for field in (field for field in settings if field.name in ("select", "k")):
        value = getattr(router, field.name)
        if value != field.default:
            return value if isinstance(value, int) else getattr(value, "k", None)
    return None


def _require_enough(count: int | None, experts: int) -> None:
    if count is not None and count > experts:
        raise RouterError(f"k of at most {experts}, the pool's experts", str(count), "Keep fewer experts.")
