"""Routers as somebody else writes them: the kit accepts those that are right, and says what is wrong with others."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.routing.base import Decision, Prepared, QueryFeatures, Router, Site, SlotDecision, Support, absent_at
from glider.routing.compose import Composed, declared
from glider.routing.condition import Condition
from glider.routing.global_part import GlobalPart
from glider.routing.linear import LinearScores, LinearTopK
from glider.routing.methods.loraretriever import LoraRetriever
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.select import Select, TopK
from glider.testing import check_router


@dataclass(frozen=True)
class FirstRows:
    """|a_e . x|, a_e the first row of A_e; `wrong` names a mistake."""

    wrong: str = ""

    def prepare(self, pool: Pool) -> dict[str, Site]:
        sites = {}
        for name in pool.sites:
            first = {e.name: e.factors(name)[0][0] for e in pool if name in e.sites}
            rows = torch.stack([first.get(e.name, torch.zeros_like(next(iter(first.values())))) for e in pool])
            sites[name] = Site(name, absent_at(name, pool.experts), {"rows": rows.float()})
        if self.wrong == "experts are left" and (instruction := pool.experts[0].instruction) is not None:
            instruction.add_(1)
        return sites

    def scores(self, x: torch.Tensor, site: Site) -> torch.Tensor:
        if self.wrong != "tokens in bfloat16":
            x = x.float()
        if self.wrong == "finite weights":
            x = x / x.norm(dim=-1, keepdim=True)  # not a number for a token that is zero
        scores = (x @ site["rows"].T).abs()
        if self.wrong == "without those before it":
            scores = scores.cumsum(dim=0)
        return scores.masked_fill(site.absent, -torch.inf)

    def linear(self, site: Site) -> LinearScores:
        return LinearScores(site["rows"], absolute=self.wrong != "`linear` gives")


@dataclass(frozen=True)
class Loudest(Composed):
    """A local score."""

    select: Select = TopK(1)
    wrong: str = ""

    def local_score(self) -> FirstRows:
        return FirstRows(self.wrong)


@dataclass(frozen=True)
class Alone(Loudest):
    """One that says that it takes one query at a time, and has a cache."""

    support: ClassVar[Support] = Support(packed=False, chunked=False, mixed=False)


@dataclass(frozen=True)
class AboveMean:
    """A selection: whoever is above the mean of those that are there, in equal parts; `wrong` names a mistake."""

    wrong: str = ""

    def __call__(self, scores: torch.Tensor) -> Decision:
        there = (scores > -torch.inf).float()
        mean = scores.masked_fill(there == 0, 0.0).sum(dim=-1, keepdim=True) / there.sum(dim=-1, keepdim=True).clamp(1)
        kept = there * (scores >= mean)
        if self.wrong == "leaves out":
            kept = kept + (scores.argmin(dim=-1, keepdim=True) == torch.arange(scores.shape[-1])) * (there < 1) * 0.5
        if self.wrong == "weights of 0 or more":
            kept = kept - 0.5 * there
        weights, experts = kept.sort(dim=-1, descending=True, stable=True)
        if self.wrong == "experts as int64":
            experts = experts.int()
        if self.wrong == "numbers as scores":
            scores = scores - scores
        if self.wrong == "scores of shape":
            scores = scores[:, :1]
        return Decision(experts, weights / weights.sum(dim=-1, keepdim=True).clamp(min=1), scores)


@dataclass(frozen=True)
class ByQuery:
    """A router for whole queries, by the pool's global term; `wrong` names a mistake."""

    wrong: str = ""

    def prepare(self, pool: Pool) -> Prepared:
        sites = {name: Site(name, absent_at(name, pool.experts)) for name in pool.sites}
        return Prepared(pool.experts, sites, GlobalPart().prepare(pool))

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        term = prepared.global_term
        assert term is not None
        scores = term.scores.of(features)
        if self.wrong == "condition does not depend":
            scores = scores - scores.mean(dim=0)
        if self.wrong == "`route` takes":
            scores = scores[:, :-1]
        if self.wrong == "beside others and alone":
            return Condition.local(1) if len(scores) == 1 else Condition.of(scores, torch.ones(len(scores)))
        return Condition.of(scores, torch.ones(len(scores)))

    def route(self, site: Site, x: torch.Tensor, term: torch.Tensor | None) -> Decision:
        scores = torch.zeros(len(x), len(site.absent)) if term is None else term
        best = scores.masked_fill(site.absent, -torch.inf).argmax(dim=-1, keepdim=True)
        return Decision(best, torch.ones(len(x), 1), scores)


@dataclass(frozen=True)
class Mean(Phatgoose):
    """Each prompt by the mean of its tokens, their mixture the input of a slot; `wrong` names a mistake."""

    wrong: str = ""
    support: ClassVar[Support] = Support(packed=False, chunked=False, sequences=True)

    def route_sequences(
        self, site: Site, x: torch.Tensor, term: torch.Tensor | None, sequence_of: torch.Tensor
    ) -> SlotDecision:
        groups = [numbers for numbers in sequence_of.unique().tolist() if numbers >= 0]
        mine = torch.stack([(sequence_of == number).float() for number in groups])  # (S, T)
        dispatch = mine / mine.sum(dim=1, keepdim=True)
        best = self.local_score().scores(dispatch @ x.float(), site).argmax(dim=-1)
        if self.wrong == "prompt's decision does not":
            dispatch = dispatch + 0.1 * (sequence_of >= 0)
        if self.wrong == "padding is in no mixture":
            dispatch = dispatch + 0.1 * (sequence_of < 0)
        if self.wrong == "no expert for padding":
            mine = mine + 0.1 * (sequence_of < 0)
        return SlotDecision(best, dispatch, mine.T.contiguous())

    def linear(self, site: Site) -> LinearTopK | None:
        return declared(self, site) if self.wrong == "`linear` gives" else super().linear(site)


@dataclass(frozen=True)
class Mixed(Phatgoose):
    """Slots that mix the tokens of a call."""

    def route(self, site: Site, x: torch.Tensor, term: torch.Tensor | None) -> Any:
        slots = super().route(site, x, term).slots
        return replace(slots, dispatch=torch.full_like(slots.dispatch, 1 / len(x)))


class Halfway:
    """What lacks a method."""

    def prepare(self, pool: Pool) -> Prepared:
        return Phatgoose().prepare(pool)

    def route(self, site: Site, x: torch.Tensor, term: torch.Tensor | None) -> Decision:
        return Phatgoose().route(site, x, term)


class Unsaid(Phatgoose):
    """A router for prompts as a whole that does not say so."""

    route_sequences = Mean.route_sequences


@pytest.mark.parametrize("router", [Loudest(), Loudest(AboveMean()), Alone(), ByQuery(), Mean()], ids=repr)
def test_what_is_right_is_accepted(base_directory: Path, pool: Pool, router: Router) -> None:
    check_router(router, pool, load_base(str(base_directory)))


WRONG: list[tuple[Any, str]] = [
    (Loudest(wrong=wrong), wrong)
    for wrong in ("experts are left", "tokens in bfloat16", "finite weights", "`linear` gives")
]
WRONG += [
    (Loudest(AboveMean(wrong)), wrong)
    for wrong in ("leaves out", "weights of 0 or more", "experts as int64", "numbers as scores", "scores of shape")
]
WRONG += [
    (ByQuery(wrong), wrong) for wrong in ("condition does not depend", "`route` takes", "beside others and alone")
]
WRONG += [
    (Mean(wrong=wrong), wrong)
    for wrong in (
        "prompt's decision does not",
        "padding is in no mixture",
        "no expert for padding",
        "`linear` gives",
    )
]
WRONG += [(Alone(wrong="without those before it"), "without those before it")]
WRONG += [(Mixed(), "does not depend on the others"), (Halfway(), "without condition"), (Unsaid(), "a `support`")]


@pytest.mark.parametrize(("router", "rule"), WRONG, ids=[rule for _, rule in WRONG])
def test_what_is_wrong_is_told_without_a_model(pool: Pool, router: Any, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_router(router, pool)


def test_passes_that_cut_prompts_are_refused_to_who_decides_them_as_a_whole() -> None:
    with pytest.raises(RouterError, match=r"packed=False and chunked=False .*; got packed=True, chunked=False"):
        Support(chunked=False, sequences=True)


def test_weights_below_zero_pass_where_they_are_meant(base_directory: Path, make_pool) -> None:
    pool = make_pool(base_directory, 3)
    router = LoraRetriever(composition="fusion", by="descriptions")
    check_router(router, pool, load_base(str(base_directory)), subtracts=True)
    with pytest.raises(AssertionError, match=r"weights of 0 or more at .*, not -0\.111"):
        check_router(router, pool)
