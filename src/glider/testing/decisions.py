"""What a router decides at a site, token by token and for prompts as a whole."""

import copy
from dataclasses import dataclass

import torch

from glider.routing.base import Decision, Prepared, Router, SequenceRouter, Site, SlotDecision, support_of
from glider.routing.compose import Composed
from glider.routing.condition import Condition
from glider.routing.linear import LinearRouter, LinearTopK
from glider.routing.scores import standardise
from glider.routing.select import TopK
from glider.shapes import Float, Tensor


def check_decision(decision: Decision | SlotDecision, site: Site, tokens: int, *, subtracts: bool = False) -> None:
    """Check one decision for so many tokens at a site; raises `AssertionError`. Weights below zero need `subtracts`."""
    count = len(site.absent)
    assert isinstance(decision, Decision | SlotDecision), f"a Decision or SlotDecision, not {type(decision).__name__}"
    experts = decision.experts
    assert experts.numel(), "one expert or more for each token (with weight 0 where it has none)"
    assert experts.dtype == torch.int64, f"experts as int64, not {experts.dtype}"
    assert int(experts.min()) >= 0 and int(experts.max()) < count, f"experts of 0 to {count - 1} at {site.name}"
    if isinstance(decision, SlotDecision):
        slots = len(experts)
        assert decision.dispatch.shape == (slots, tokens), "dispatch of shape (slots, tokens)"
        assert decision.combine.shape == (tokens, slots), "combine of shape (tokens, slots)"
        assert bool(decision.dispatch.isfinite().all()), f"finite weights in dispatch at {site.name}"
        weights = decision.token_weights(count)
    else:
        assert experts.shape == decision.weights.shape, "a weight for each expert of a token"
        assert len(experts) == tokens, f"a decision for each of {tokens} tokens"
        assert all(len(set(row)) == len(row) for row in experts.tolist()), "each expert once for a token"
        assert decision.weights.is_floating_point(), f"weights as numbers, not {decision.weights.dtype}"
        weights = torch.zeros(tokens, count).scatter(1, experts, decision.weights.float())
    assert bool(weights.isfinite().all()), f"finite weights at {site.name}"
    assert bool((weights[:, site.absent] == 0).all()), f"no weight for an expert that {site.name} lacks"
    least = float(weights.min())
    assert subtracts or least >= 0, f"weights of 0 or more at {site.name}, not {least:g} (`subtracts=True` allows them)"
    if (scores := decision.scores) is not None:
        assert scores.shape == (tokens, count), f"scores of shape ({tokens}, {count}), not {tuple(scores.shape)}"
        assert not bool(scores.isnan().any()), f"numbers as scores at {site.name}"


@dataclass(frozen=True)
class Rules:
    """A site, and what its decisions may be."""

    site: Site
    subtracts: bool

    def check(self, decision: Decision | SlotDecision, tokens: int) -> None:
        check_decision(decision, self.site, tokens, subtracts=self.subtracts)


def check_site(router: Router, rules: Rules, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> None:
    site, tokens = rules.site, len(x)
    x_before, site_before = x.clone(), copy.deepcopy(site)
    try:
        decision = router.route(site, x, term)
    except (IndexError, RuntimeError) as fault:
        arguments = f"x {tuple(x.shape)} and a term {None if term is None else tuple(term.shape)}"
        raise AssertionError(f"`route` takes {arguments} at {site.name}: {fault}") from fault
    rules.check(decision, tokens)
    assert torch.equal(x, x_before), "tokens are left as they are"
    assert all(torch.equal(site[name], site_before[name]) for name in site.tensors), "a site is left as it is"
    again = router.route(site, x, term)
    assert torch.equal(again.experts, decision.experts), "the same tokens give the same decision"
    support, whole = support_of(router), _mixture(decision, site)
    message = "a query's decision does not depend on the others" if support.mixed else None
    message = message or ("a new token is decided without those before it (`Support.cache`)" if support.cache else None)
    if message is not None:
        for row in (2, tokens - 1):
            alone = router.route(site, x[row : row + 1], None if term is None else term[row : row + 1])
            rules.check(alone, 1)
            expected = torch.zeros_like(whole[row])
            expected[:, row] = _mixture(alone, site)[0, :, 0]
            torch.testing.assert_close(whole[row], expected, atol=1e-4, rtol=1e-4, msg=message)
    try:
        halved = router.route(site, x.bfloat16(), term)
    except RuntimeError as fault:
        raise AssertionError(f"tokens in bfloat16 are taken as well (`x.float()`): {fault}") from fault
    rules.check(halved, tokens)
    if isinstance(router, LinearRouter) and (linear := router.linear(site)) is not None:
        torch.testing.assert_close(
            _mixture(_decided(linear, site, x, term), site), whole, atol=1e-4, rtol=1e-4,
            msg="`linear` gives what `route` decides",
        )  # fmt: skip


def _decided(linear: LinearTopK, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
    """The decision that a declaration stands for."""
    said = linear.scores
    tokens = standardise(x) if said.standardise else x.float()
    scores = torch.zeros(len(x), len(site.absent))
    if said.rows is not None:
        scores = tokens @ said.rows.float().T / said.divisor
    scores = (scores.abs() if said.absolute else scores).masked_fill(site.absent, -torch.inf)
    scores = scores if term is None else scores + term
    return TopK(linear.k, linear.renormalise)(scores)


def check_left_out(router: Router, rules: Rules, x: Float[Tensor, "T D"]) -> None:
    """Of a router that adds the term to its scores: a query may leave out one expert, or all that a site has."""
    if not (isinstance(router, Composed) and type(router).route is Composed.route):
        return
    there = (~rules.site.absent).nonzero()[:, 0].tolist()
    for out in (there[:1], there):
        term = torch.zeros(len(x), len(rules.site.absent))
        term[:, out] = -torch.inf
        decision = router.route(rules.site, x, term)
        rules.check(decision, len(x))
        left = _mixture(decision, rules.site)[:, out]
        assert bool((left == 0).all()), "no weight for an expert that a term of minus infinity leaves out"


def check_sequences(
    router: Router, rules: Rules, prepared: Prepared, condition: Condition, draw: torch.Generator
) -> None:
    assert isinstance(router, SequenceRouter)
    site = rules.site
    x = torch.randn(9, width_at(prepared, site), generator=draw)
    numbers = torch.tensor([0, 0, 0, 0, -1, 1, 1, 1, 2])
    term = None if condition.term is None else condition.term[numbers.clamp(min=0)]
    together = router.route_sequences(site, x, term, numbers)
    rules.check(together, len(x))
    whole = _mixture(together, site)
    real = numbers >= 0
    if isinstance(router, LinearRouter) and (linear := router.linear(site)) is not None:
        torch.testing.assert_close(
            _mixture(_decided(linear, site, x, term), site)[real], whole[real], atol=1e-4, rtol=1e-4,
            msg="`linear` gives what `route_sequences` decides",
        )  # fmt: skip
    assert bool((whole[4] == 0).all()), "no expert for padding"
    assert bool((whole[:, :, 4] == 0).all()), "padding is in no mixture"
    for tokens in (slice(0, 4), slice(5, 8), slice(8, 9)):
        alone = router.route_sequences(site, x[tokens], None if term is None else term[tokens], numbers[tokens])
        expected = torch.zeros_like(whole[tokens])
        expected[:, :, tokens] = _mixture(alone, site)
        torch.testing.assert_close(
            whole[tokens], expected, atol=1e-4, rtol=1e-4, msg="a prompt's decision does not depend on the others"
        )


def width_at(prepared: Prepared, site: Site) -> int:
    return next(expert.sites[site.name].in_features for expert in prepared.experts if site.name in expert.sites)


def _mixture(decision: Decision | SlotDecision, site: Site) -> Float[Tensor, "T E U"]:
    """How much of token u goes through expert e into token t."""
    slots = decision if isinstance(decision, SlotDecision) else decision.slots
    parts = slots.combine.float()[:, :, None] * slots.dispatch.float()[None]  # (T, S, U)
    return parts.new_zeros(len(parts), len(site.absent), parts.shape[2]).index_add(1, slots.experts, parts)
