"""For authors of routers: the contract that every router keeps, as one call for a test.

from glider.testing import check_router

def test_my_router(pool):
    check_router(MyRouter(), pool)
"""

import copy
from collections.abc import Iterator

import torch

from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel
from glider.inference.queries import Query
from glider.inference.spec import ModelSpec
from glider.routing.base import (
    Decision,
    Prepared,
    QueryFeatures,
    Router,
    SequenceRouter,
    Site,
    SlotDecision,
    support_of,
)
from glider.routing.condition import Condition
from glider.routing.preparation import prepare
from glider.shapes import Float, Tensor

_PROMPTS = ("hello there", "sort 3 1 2")
_SCALES = (1e-3, 1.0, 300.0)  # of the tokens


def check_router(router: Router, pool: Pool, base: BaseModel | None = None, *, seed: int = 0) -> None:
    """Check a router on a pool; raises `AssertionError` that says what it does not keep to.

    Always: what it prepares has a row for each expert, and the pool is as before; a condition has a row for each query;
    decisions have experts in range, each at most once for a token, and finite weights, none for an expert that the site
    lacks; the same tokens give the same decision; where it supports mixed batches (`Support`), a query's decision does
    not depend on the others.

    A router that decides a prompt's tokens together is asked for two prompts and padding in one call, and for each by
    itself. With a base model of the pool also: answers of a batch, of beams and of packed passes are those of each
    prompt alone, scores are finite, plain PyTorch's kernels and the best one here say the same, a router of one expert
    says the same folded, a query that is overruled is left to the base and the one beside it routed as by itself, and
    the model is as before when the pool is taken off.

    Arguments:
        router: The router, with its settings.
        pool: Experts, best of unlike ranks and sites.
        base: The pool's base model, a small one.
        seed: Of the tokens.
    """
    prepared = prepare(router, pool)
    _check_prepared(prepared)
    draw = torch.Generator().manual_seed(seed)
    for site in _samples(prepared):
        for scale in _SCALES:
            _check_site(router, prepared, site, scale, draw)
        if support_of(router).sequences:
            _check_sequences(router, prepared, site, draw)
    if base is not None:
        _check_model(router, pool, base)
        _check_kernels(router, pool, base)
        _check_verdicts(router, pool, base)


def check_decision(decision: Decision | SlotDecision, site: Site, tokens: int) -> None:
    """Check one decision for so many tokens at a site; raises `AssertionError`."""
    count = len(site.absent)
    experts = decision.experts
    assert int(experts.min()) >= 0 and int(experts.max()) < count, f"experts of 0 to {count - 1} at {site.name}"
    if isinstance(decision, SlotDecision):
        slots = len(experts)
        assert decision.dispatch.shape == (slots, tokens), "dispatch of shape (slots, tokens)"
        assert decision.combine.shape == (tokens, slots), "combine of shape (tokens, slots)"
        weights = decision.token_weights(count)
    else:
        assert experts.shape == decision.weights.shape, "a weight for each expert of a token"
        assert len(experts) == tokens, f"a decision for each of {tokens} tokens"
        assert all(len(set(row)) == len(row) for row in experts.tolist()), "each expert once for a token"
        weights = torch.zeros(tokens, count).scatter(1, experts, decision.weights.float())
    assert bool(weights.isfinite().all()), f"finite weights at {site.name}"
    assert bool((weights[:, site.absent] == 0).all()), f"no weight for an expert that {site.name} lacks"


def _check_prepared(prepared: Prepared) -> None:
    count = len(prepared.experts)
    for name, site in prepared.sites.items():
        assert site.name == name, f"the site {name} under its own name"
        assert site.absent.shape == (count,), f"`absent` for {count} experts at {name}"
        for label, tensor in site.tensors.items():
            assert len(tensor) == count, f"a row for each of {count} experts in {label} of {name}"
            assert bool(tensor.isfinite().all()), f"finite values in {label} of {name}"
    for name, block in prepared.blocks.items():
        assert block.name == name, f"the block {name} under its own name"
        assert all(bool(tensor.isfinite().all()) for tensor in block.tensors.values()), f"finite values at {name}"


def _check_site(router: Router, prepared: Prepared, site: Site, scale: float, draw: torch.Generator) -> None:
    tokens = 5
    x = scale * torch.randn(tokens, _width(prepared, site), generator=draw)
    condition = _condition(router, prepared, tokens, draw)
    assert len(condition) == tokens, "a row of the condition for each query"
    term = condition.term
    x_before, site_before = x.clone(), copy.deepcopy(site)
    decision = router.route(site, x, term)
    check_decision(decision, site, tokens)
    assert torch.equal(x, x_before), "tokens are left as they are"
    assert all(torch.equal(site[name], site_before[name]) for name in site.tensors), "a site is left as it is"
    again = router.route(site, x, term)
    assert torch.equal(again.experts, decision.experts), "the same tokens give the same decision"
    if support_of(router).mixed and isinstance(decision, Decision):
        alone = router.route(site, x[2:3], None if term is None else term[2:3])
        assert isinstance(alone, Decision), "one form of decision"
        torch.testing.assert_close(
            _dense(alone, site), _dense(decision, site)[2:3], atol=1e-4, rtol=1e-4,
            msg="a query's decision does not depend on the others",
        )  # fmt: skip


def _check_sequences(router: Router, prepared: Prepared, site: Site, draw: torch.Generator) -> None:
    assert isinstance(router, SequenceRouter), "`route_sequences` of a router whose support says `sequences`"
    x = torch.randn(9, _width(prepared, site), generator=draw)
    numbers = torch.tensor([0, 0, 0, 0, -1, 1, 1, 1, 2])
    together = router.route_sequences(site, x, None, numbers)
    check_decision(together, site, len(x))
    whole = _weights(together, site)
    assert bool((whole[4] == 0).all()), "no expert for padding"
    for tokens in (slice(0, 4), slice(5, 8), slice(8, 9)):
        alone = router.route_sequences(site, x[tokens], None, numbers[tokens])
        torch.testing.assert_close(
            _weights(alone, site), whole[tokens], atol=1e-4, rtol=1e-4,
            msg="a prompt's decision does not depend on the others",
        )  # fmt: skip


def _check_kernels(router: Router, pool: Pool, base: BaseModel) -> None:
    """Reference, torch and whatever runs by itself here say the same; so does a folded expert."""
    scores = []
    for kernel in ("reference", "torch", None):
        model = ModelSpec(router=router, kernel=kernel).over(base, pool)
        try:
            scores.append([choice.log_likelihood for choice in model.score(_PROMPTS[0], ["yes", "no"])])
            if kernel is None and len(model.attached.prepared.experts) == 1:
                model.fold()
                scores.append([choice.log_likelihood for choice in model.score(_PROMPTS[0], ["yes", "no"])])
                model.unfold()
        finally:
            model.detach()
    for other in scores[1:]:
        torch.testing.assert_close(
            torch.tensor(other), torch.tensor(scores[0]), atol=5e-3, rtol=1e-3, msg="kernels say the same"
        )


def _check_verdicts(router: Router, pool: Pool, base: BaseModel) -> None:
    """A query that is overruled has the base's answer, alone and beside one that is routed."""
    support = support_of(router)
    settings = {"max_new_tokens": 3, "use_cache": support.cache}
    bare = ModelSpec(router="base").over(base, pool)
    try:
        (of_base,) = bare.generate(_PROMPTS[:1], **settings)
    finally:
        bare.detach()
    overruled = Query(_PROMPTS[0], verdict="base")
    model = ModelSpec(router=router).over(base, pool)
    try:
        answers = model.generate([overruled], **settings)
        if support.mixed:
            (routed,) = model.generate(_PROMPTS[1:], **settings)
            beside, other = model.generate([overruled, _PROMPTS[1]], **settings)
            answers.append(beside)
            assert other.token_ids == routed.token_ids, "a query beside one that is left to the base is routed as alone"
    finally:
        model.detach()
    for answer in answers:
        assert answer.token_ids == of_base.token_ids, "a query that is left to the base has the base's answer"


def _check_model(router: Router, pool: Pool, base: BaseModel) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    model = ModelSpec(router=router).over(base, pool)
    try:
        support = support_of(router)
        settings = {"max_new_tokens": 3, "use_cache": support.cache}
        alone = [model.generate([prompt], **settings)[0] for prompt in _PROMPTS]
        if support.mixed:
            together = model.generate(_PROMPTS, **settings)
            assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone], (
                "answers of a batch are those of each prompt alone"
            )
        if support.mixed:
            beams = [model.generate([prompt], num_beams=2, **settings)[0] for prompt in _PROMPTS]
            assert [answer.token_ids for answer in model.generate(_PROMPTS, num_beams=2, **settings)] == [
                answer.token_ids for answer in beams
            ], "beams of a batch are those of each prompt alone"
        if support.mixed and support.cache:
            packed = model.generate_batch(_PROMPTS, max_new_tokens=3)
            assert [answer.token_ids for answer in packed] == [answer.token_ids for answer in alone], (
                "answers of packed passes are those of each prompt alone"
            )
        for choice in model.score(_PROMPTS[0], ["yes", "no"]):
            assert choice.log_likelihood < 0, "log-likelihoods below zero"
    finally:
        model.detach()
    after = base.model.state_dict()
    assert after.keys() == before.keys(), "the model has its own modules again"
    assert all(torch.equal(value, before[name]) for name, value in after.items()), "the base model is as it was"


def _condition(router: Router, prepared: Prepared, queries: int, draw: torch.Generator) -> Condition:
    """That of queries of which only descriptions are known, or without a global term that reads others."""
    term = prepared.global_term
    if term is None or term.scores.needs <= {"instructions"}:
        instructions = (getattr(expert, "instruction", None) for expert in prepared.experts)
        width = next((len(one) for one in instructions if one is not None), 384)
        return router.condition(prepared, QueryFeatures(queries, torch.randn(queries, width, generator=draw)))
    scores = torch.rand(queries, len(prepared.experts), generator=draw)
    return Condition.of(scores, torch.full((queries,), term.gamma + term.beta))


def _samples(prepared: Prepared) -> Iterator[Site]:
    """Some sites, one that all experts have and one that some lack among them where there are such."""
    sites = list(prepared.sites.values())
    whole = next((site for site in sites if not bool(site.absent.any())), None)
    partly = next((site for site in sites if bool(site.absent.any())), None)
    yield from (site for site in (whole, partly) if site is not None)


def _width(prepared: Prepared, site: Site) -> int:
    return next(expert.sites[site.name].in_features for expert in prepared.experts if site.name in expert.sites)


def _weights(decision: Decision | SlotDecision, site: Site) -> Float[Tensor, "T E"]:
    return decision.token_weights(len(site.absent)) if isinstance(decision, SlotDecision) else _dense(decision, site)


def _dense(decision: Decision, site: Site) -> Float[Tensor, "T E"]:
    weights = decision.weights.float()
    return torch.zeros(len(weights), len(site.absent)).scatter(1, decision.experts, weights)
