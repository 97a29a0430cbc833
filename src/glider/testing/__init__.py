"""For authors of routers: the contract that every router keeps, as one call for a test.

from glider.testing import check_router

def test_my_router(pool):
    check_router(MyRouter(), pool)
"""

from collections.abc import Iterator
from itertools import product

import torch

from glider.errors import GliderError
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel
from glider.routing.base import BlockRouter, Prepared, Router, SequenceRouter, Site, Support, support_of
from glider.routing.preparation import prepare, require_router, ungated
from glider.shapes import Tensor
from glider.testing.conditions import TOKENS, conditions_of
from glider.testing.decisions import Rules, check_decision, check_left_out, check_sequences, check_site, width_at
from glider.testing.models import check_kernels, check_model, check_verdicts

__all__ = ["check_decision", "check_router"]
_SCALES = (1e-3, 1.0, 300.0)  # of the tokens


def check_router(
    router: Router, pool: Pool, base: BaseModel | None = None, *, seed: int = 0, subtracts: bool = False
) -> None:
    """Check a router on a pool; raises `AssertionError` that says what it does not keep to.

    Always: what it prepares has a row for each expert, and the pool is as before; a condition has a row for each query,
    which does not depend on the other queries; decisions have experts in range, each at most once for a token, and
    finite weights, none for an expert that the site lacks or that a term of minus infinity leaves out; the same tokens
    give the same decision, in bfloat16 too; where it supports mixed batches or a cache (`Support`), a token's decision
    does not depend on the other tokens; `linear`, where it has that, says what `route` does.

    A router that decides a prompt's tokens together is asked for two prompts and padding in one call, and for each by
    itself. With a base model of the pool also: answers of a batch, of beams and of packed passes are those of each
    prompt alone, those with a cache are those without, scores are finite, plain PyTorch's kernels and the best one here
    say the same, a router of one expert says the same folded, a query that is overruled is left to the base and the one
    beside it routed as by itself, and the model is as before when the pool is taken off.

    Arguments:
        router: The router, with its settings.
        pool: Experts, best of unlike ranks and sites.
        base: The pool's base model, a small one.
        seed: Of the tokens.
        subtracts: Whether weights below zero are meant, as where a sum has cross terms taken out.
    """
    _check_form(router)
    stored = {name: tensor.clone() for name, tensor in _stored(pool).items()}
    prepared = prepare(router, pool)
    _check_prepared(prepared)
    method, draw = ungated(router), torch.Generator().manual_seed(seed)
    conditions = conditions_of(method, prepared, pool, draw)
    for site in _samples(prepared):
        rules = Rules(site, subtracts)
        x = torch.randn(TOKENS, width_at(prepared, site), generator=draw)
        x[-1] = 0.0
        for scale, condition in product(_SCALES, conditions):
            check_site(method, rules, scale * x, condition.term)
        check_left_out(method, rules, x)
        if support_of(method).sequences:
            for condition in conditions:
                check_sequences(method, rules, prepared, condition, draw)
    after = _stored(pool)
    assert all(torch.equal(after[name], tensor) for name, tensor in stored.items()), "experts are left as they are"
    if base is not None:
        check_model(router, pool, base)
        check_kernels(router, pool, base)
        check_verdicts(router, pool, base)


def _check_form(router: Router) -> None:
    try:
        require_router(router)
    except GliderError:
        lacking = [name for name in ("prepare", "condition", "route") if not callable(getattr(router, name, None))]
        raise AssertionError(f"a router has methods prepare, condition, route; without {', '.join(lacking)}") from None
    method = ungated(router)
    support = support_of(method)
    assert isinstance(support, Support), f"`support` as a Support, not {type(support).__name__}"
    if isinstance(method, SequenceRouter):
        assert hasattr(method, "support"), "a `support` of a router with `route_sequences`, which else is never called"
    if isinstance(method, BlockRouter):
        assert support.sequences, "a `support` that says `sequences` of a router with `computed`"
    if support.sequences:
        assert isinstance(method, SequenceRouter), "`route_sequences` of a router whose support says `sequences`"


def _stored(pool: Pool) -> dict[str, Tensor]:
    """What the pool's experts hold in memory."""
    tensors = {}
    for expert in pool:
        profile = {} if expert.profile is None else expert.profile.tensors()
        known = profile if expert.instruction is None else {**profile, "instruction": expert.instruction}
        tensors |= {f"{expert.name}: {name}": tensor for name, tensor in known.items()}
    return tensors


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


def _samples(prepared: Prepared) -> Iterator[Site]:
    """Some sites, one that all experts have and one that some lack among them where there are such."""
    sites = list(prepared.sites.values())
    whole = next((site for site in sites if not bool(site.absent.any())), None)
    partly = next((site for site in sites if bool(site.absent.any())), None)
    yield from (site for site in (whole, partly) if site is not None)
