"""From a model's name and the field `glider` to a condition: routed, the base, one expert, or some of them."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from glider.errors import GliderError
from glider.inference.conversation import Turn
from glider.inference.queries import Query
from glider.routing.base import GlobalTerm, Prepared, Router
from glider.routing.compose import Composed
from glider.routing.condition import Condition, Described, Settled
from glider.routing.preparation import Gated, abstains, judge_of, ungated
from glider.routing.specification import parsed, router_from
from glider.serve.errors import ApiError
from glider.serve.schemas import Steering
from glider.serve.verdicts import condition_of

if TYPE_CHECKING:
    from glider.experts.pool import Pool
    from glider.inference.model import RoutedModel
    from glider.layers.attach import Generation
    from glider.verdicts.judge import Judge

log = logging.getLogger("glider.serve")


@dataclass(frozen=True)
class Guided:
    """A condition, and the reply's fields about it."""

    condition: Condition
    verdict: str | None
    alpha: float | None
    scores: dict[str, float]  # by expert; empty without a global term
    description: str | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Way:
    """How a model's name is answered: `routed` (by the pool's router, or `router`), `base`, one expert of the pool
    (`single`), or an adapter that is no expert of the pool (`alone`)."""

    kind: str
    expert: str | None = None
    router: str | None = None


def guided(
    model: "RoutedModel",
    generation: "Generation",
    way: Way,
    query: Query,
    ids: Sequence[int],
    steering: Steering,
    turns: Sequence[Turn] = (),
) -> Guided:
    """The condition of one request. Raises `ApiError` for steering that this model cannot follow."""
    if way.kind != "routed":
        what = "the base model" if way.expert is None else f"the expert {way.expert} alone"
        _refuse("verdict", "description", "examples", "experts", "exclude", steering=steering, what=what)
        if way.expert is None:
            return Guided(Condition.nobody(1), None, None, {})
        if way.kind == "alone":
            return Guided(Condition.local(1), None, None, {})
        return Guided(_fixed_condition(generation.names, {way.expert: 1.0}), None, None, {})
    if steering.verdict == "base":
        _refuse("description", "examples", "experts", "exclude", steering=steering, what="the verdict base")
        return Guided(Condition.nobody(1), None, None, {})
    if isinstance(steering.experts, dict):
        _refuse("description", "examples", "exclude", steering=steering, what="weights of experts")
        return Guided(_fixed_condition(generation.names, steering.experts), None, None, {})
    if way.router is not None:
        generation = replace(generation, **other_router(model.pool, generation, way.router))
    override = "route" if isinstance(steering.experts, list) else steering.verdict
    condition, verdict = condition_of(model, generation, query, ids, override, turns)
    left_out = _left_out(generation.names, steering)
    if left_out:
        condition = _without(condition, generation, left_out)
    return _guided_by(condition, verdict, generation)


def _guided_by(condition: Condition, verdict: str | None, generation: "Generation") -> Guided:
    described = condition.described[0] if condition.described else None
    values = [] if condition.global_scores is None else condition.global_scores[0].tolist()
    scores = {name: value for name, value in zip(generation.names, values, strict=False) if value != -torch.inf}
    alpha = None if condition.alpha is None else float(condition.alpha[0])
    return Guided(
        condition, verdict, alpha, scores, described and described.text, described and _client_fault(described)
    )


def _client_fault(described: Described) -> str | None:
    """What a client is told of a fault: not the words of a describer or an embedder, which name addresses and files."""
    if described.fault == described.unused:
        return described.fault
    log.warning("the description of a query: %s", described.fault)
    return "; ".join(filter(None, ("nothing was embedded for this query; the server's log says why", described.unused)))


def _refuse(*fields: str, steering: Steering, what: str) -> None:
    """Raise `ApiError` for fields that change nothing beside what decides already."""
    for field in fields:
        if getattr(steering, field) not in (None, []):
            message = f"{field} steers the router, which decides nothing beside {what}"
            raise ApiError(400, message, param=f"glider.{field}", code="unsupported_parameter")


def _place(names: Sequence[str], name: str, param: str) -> int:
    if name not in names:
        raise ApiError(400, f"no expert {name!r} in this pool", param=param, code="expert_not_found")
    return list(names).index(name)


def _fixed_condition(names: Sequence[str], weights: Mapping[str, float]) -> Condition:
    """These experts by these weights, for every token."""
    places = [_place(names, name, "glider.experts") for name in weights]
    values = torch.tensor([[float(weight) for weight in weights.values()]])  # (1, K), float32
    if not bool(values.any()):
        raise ApiError(400, "weights of experts are not all 0", param="glider.experts", code="invalid_value")
    return Condition(1, settled=Settled(torch.tensor([places]), values))


def _left_out(names: Sequence[str], steering: Steering) -> list[int]:
    out = {_place(names, name, "glider.exclude") for name in steering.exclude}
    if isinstance(steering.experts, list):
        allowed = {_place(names, name, "glider.experts") for name in steering.experts}
        out |= set(range(len(names))) - allowed
    if len(out) == len(names):
        field = "exclude" if steering.exclude else "experts"
        raise ApiError(400, "no expert is left to choose from", param=f"glider.{field}", code="invalid_value")
    return sorted(out)


def _reads_term(router: Router) -> bool:
    return isinstance(router, Composed) and type(router).route is Composed.route


def _term_of(condition: Condition, prepared: Prepared) -> GlobalTerm | None:
    """The term that made the scores of one query; None where none did, or where its embedding failed."""
    if condition.global_scores is None or not condition.signals:
        return None
    known = condition.described[0] if condition.described else None
    failed = known is not None and known.fault not in (None, known.unused)
    if failed and not bool(condition.global_scores.any()):
        return None
    by_description = known is not None and known.source not in ("query", "none")
    terms = [prepared.described_term] if by_description else []
    terms += [prepared.global_term, prepared.judge and prepared.judge.term]
    return next((term for term in terms if term is not None and term.signal == condition.signals[0]), None)


def _without(condition: Condition, generation: "Generation", out: Sequence[int]) -> Condition:
    """The condition with some experts left out: of the tokens' choice, and of what alpha looks at.

    A query that fitted one of them, and fits no other, is the base's where unsure queries are.
    """
    if not _reads_term(generation.router):
        name = type(generation.router).__name__
        message = f"experts cannot be left out under the router {name}; give weights instead"
        raise ApiError(400, message, param="glider.exclude", code="unsupported_parameter")
    if condition.global_scores is None or condition.alpha is None:
        scores, alpha = torch.zeros(1, len(generation.names)), torch.ones(1)
    else:
        scores, alpha = condition.global_scores.clone(), condition.alpha
    scores[:, list(out)] = -torch.inf
    term = _term_of(condition, generation.prepared)
    fits = torch.zeros(1, dtype=torch.bool) if term is None else scores.amax(dim=-1) > term.p
    if term is not None:
        alpha = term.gamma * fits.float() + term.beta
    if not bool((alpha > 0).all()):
        message = "experts cannot be left out where alpha is not above 0"
        raise ApiError(400, message, param="glider.exclude", code="unsupported_parameter")
    settled, judge = _settled_without(condition.settled, out), generation.prepared.judge
    condition, lost = replace(condition, global_scores=scores, alpha=alpha, settled=settled), condition.settled
    leaves = judge is not None and judge.thresholds.leaves_unsure
    return condition.left_to_base([leaves and lost is not None and settled is None and not bool(fits[0])])


def _settled_without(settled: Settled | None, out: Sequence[int]) -> Settled | None:
    """What is settled of one query with some experts left out; None where no other is, and tokens choose.

    The others of those that the query mixes share the whole weight.
    """
    if settled is None:
        return None
    weights = settled.weights.masked_fill(torch.isin(settled.experts, torch.tensor(out)), 0.0)
    if torch.equal(weights, settled.weights):
        return settled
    share = weights.sum()
    return None if share == 0 else Settled(settled.experts, weights * settled.weights.sum() / share)


def _judge(
    router: Router, generation: "Generation", text: str, pool: "Pool", term: GlobalTerm | None
) -> "Judge | None":
    """The judge of another router over the same pool. The contest of the served one's is made already; where it has
    none, the other has one if it abstains by itself and the served one does not."""
    by_itself, judge = abstains(router), generation.prepared.judge
    abstain = router.abstain if isinstance(router, Gated) else None
    if judge is None and abstain is None and by_itself and not abstains(generation.router):
        return judge_of(router, pool, term)
    if abstain and judge is None:
        message = f"{text}: the pool is served without verdicts"
        raise ApiError(400, message, param="model", code="unsupported_router")
    if judge is None or abstain is False or (abstain is None and not by_itself):
        return None
    return replace(judge, settles=by_itself)


def other_router(pool: "Pool", generation: "Generation", text: str) -> dict[str, Any]:
    """Router and prepared pool of another method that differs from the served one in its condition alone; raises
    `ApiError` for any other."""
    try:
        name, settings = parsed(text)
        gated = router_from(name, settings)
    except GliderError as fault:
        raise ApiError(404, str(fault), param="model", code="model_not_found") from fault
    served, other = generation.router, ungated(gated)
    same = (
        isinstance(other, Composed)
        and isinstance(served, Composed)
        and _reads_term(other)
        and _reads_term(served)
        and other.local_score() == served.local_score()
        and other.selection() == served.selection()
    )
    if not same:
        remedy = f"serve it by another process (glider serve --pool POOL --router {shlex.quote(text)})"
        if name == "base" or name.startswith("single:"):
            remedy = "/v1/models names the base and each expert, which answer alone where `model` is that name"
        message = f"the router {text} decides tokens by other numbers than the one served; {remedy}"
        raise ApiError(400, message, param="model", code="unsupported_router")
    assert isinstance(other, Composed)
    part = other.global_part()
    term = None if part is None else part.prepare(pool)
    by_description = getattr(part, "prepare_described", None)
    described = None if by_description is None else by_description(pool)
    judge = _judge(gated, generation, text, pool, term)
    prepared = Prepared(generation.prepared.experts, generation.prepared.sites, term, described, judge)
    return {"router": other, "prepared": prepared}
