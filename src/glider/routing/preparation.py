"""Prepares a pool for a router, with errors that name the router, and with a judge where queries have verdicts."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Decision, GlobalTerm, Prepared, QueryFeatures, Router, Site, SlotDecision, routers
from glider.routing.condition import Condition
from glider.routing.global_part import DESCRIPTIONS, GlobalPart
from glider.shapes import Float, Tensor

if TYPE_CHECKING:
    from glider.verdicts.judge import Judge
    from glider.verdicts.kinship import Kinship


@dataclass(frozen=True)
class Gated:
    """A router, and whether the base alone answers queries that no expert suits.

    Use `prepare` and `ungated` to take it apart.
    """

    router: Router
    abstain: bool

    def prepare(self, pool: Pool) -> Prepared:
        """As `glider.routing.preparation.prepare`."""
        return prepare(self, pool)

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        return self.router.condition(prepared, features)

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision | SlotDecision:
        return self.router.route(site, x, term)


def require_router(router: Any) -> Any:
    """The router; raises `RouterError` for what is none."""
    if not isinstance(router, Router):
        raise RouterError("a router, or the name of one", type(router).__name__, "See `glider routers`.")
    return router


def ungated(router: Router) -> Router:
    """The router itself."""
    return router.router if isinstance(router, Gated) else router


def prepare(router: Router, pool: Pool) -> Prepared:
    """`router.prepare(pool)`, with a judge where its queries have verdicts.

    A router that abstains by itself has one where the pool is calibrated for verdicts. Raises the router's
    `RouterError` with its name in it, and `RouterError` for a router that is to abstain over a pool that is not
    calibrated.
    """
    method = ungated(router)
    try:
        prepared = method.prepare(pool)
    except RouterError as fault:
        raise RouterError(f"{fault.wanted} (router {name_of(method)})", fault.got, fault.remedy) from fault
    return replace(prepared, judge=judge_of(router, pool, prepared.global_term))


def judge_of(router: Router, pool: Pool, router_term: GlobalTerm | None) -> "Judge | None":
    """The judge of a router's queries over a pool, where they have verdicts; `router_term` is the router's global one.

    Raises `RouterError` as `prepare` does.
    """
    abstain = router.abstain if isinstance(router, Gated) else None
    by_itself = abstains(router)
    profiles = [expert.profile for expert in pool]
    known = any(profile is not None and profile.has_words for profile in profiles)  # else all would be strangers
    thresholds = pool.index.verdicts if known else None
    if abstain is False or (abstain is None and not (by_itself and thresholds is not None)):
        return None
    if thresholds is None:
        remedy = f"Make profiles where there are none, and calibrate it: `glider pool calibrate {pool.path}`."
        raise RouterError("a pool that is calibrated for verdicts", f"{pool.path}, which is not", remedy)
    from glider.verdicts.background import shipped
    from glider.verdicts.contest import Contest
    from glider.verdicts.judge import Judge

    contest = Contest.of(profiles, pool.background or shipped())
    term = router_term
    if term is None or not (by_itself or term.gamma):  # p decides nothing without gamma
        term = _term(pool)
    if router_term is not None and router_term.signal == DESCRIPTIONS:
        term = _term_of_words(pool)
    return Judge(contest, thresholds, settles=by_itself, term=term, kinship=_kinship(pool))


def abstains(router: Router) -> bool:
    """Whether a router uses verdicts where nobody says otherwise."""
    return bool(getattr(ungated(router), "abstains", False))


def _kinship(pool: Pool) -> "Kinship | None":
    """What chooses an unsure query's experts by their descriptions, where the pool is calibrated for that."""
    thresholds = pool.index.verdicts
    if thresholds is None or thresholds.nearest_by != "descriptions" or not thresholds.experts or len(pool) < 2:
        return None
    from glider.verdicts.kinship import Kinship

    kinship = Kinship.of([expert.instruction for expert in pool])
    if kinship is None:
        remedy = f"Describe the experts, or calibrate it: `glider pool calibrate {pool.path} --unsure-by signal`."
        raise RouterError("an expert with a description, which unsure queries are compared with", "none", remedy)
    return kinship


def _term_of_words(pool: Pool) -> GlobalTerm | None:
    """The term by a signal that the pool is calibrated for and that does not compare descriptions: the pool's, else
    `examples`; None where there is none, or an expert lacks the profile for it."""
    signal = pool.index.signal
    name = "examples" if signal in (None, DESCRIPTIONS) else signal
    needs_vectors = name != "examples"
    lacking = any(
        profile is None or not profile.has_words or (needs_vectors and profile.inputs is None)
        for profile in (one.profile for one in pool)
    )
    return None if lacking or name not in pool.index.calibrations else GlobalPart(name).prepare(pool)


def _term(pool: Pool) -> GlobalTerm | None:
    """The pool's own global term, where it has one."""
    if pool.index.signal is None or pool.index.signal not in pool.index.calibrations or len(pool) < 2:
        return None
    return GlobalPart(pool.index.signal).prepare(pool)


def name_of(router: Router) -> str:
    """The registry's name of a router, or its class's for one that is not registered."""
    router = ungated(router)
    registered = (entry.name for entry in routers if entry.make is type(router))
    name = getattr(router, "registered_as", None)  # where one class serves several names
    return name or next(registered, type(router).__name__)
