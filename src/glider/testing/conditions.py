"""The conditions that a router gives queries."""

import torch

from glider.experts.pool import Pool
from glider.instructions.inputs import ngrams
from glider.routing.base import Observer, Prepared, QueryFeatures, Router
from glider.routing.condition import Condition

TOKENS = 6  # each of a query of its own


def conditions_of(router: Router, prepared: Prepared, pool: Pool, draw: torch.Generator) -> list[Condition]:
    """Those that the router gives some queries, and one with a term as strong as its constants allow."""
    features = _features(pool, draw)
    conditions = [_checked_condition(router, prepared, features)]
    known, term = conditions[0].global_scores, prepared.global_term
    scores = torch.rand(TOKENS, len(prepared.experts) if known is None else known.shape[1], generator=draw)
    if isinstance(router, Observer):
        observed = router.observe(scores)
        _check_rows(observed, [router.observe(scores[row : row + 1]) for row in range(TOKENS)], prepared)
        conditions.append(observed)
    elif term is not None:
        conditions.append(Condition.of(scores, torch.full((TOKENS,), term.gamma + term.beta)))
    return conditions


def _checked_condition(router: Router, prepared: Prepared, features: QueryFeatures) -> Condition:
    condition = router.condition(prepared, features)
    _check_rows(condition, [router.condition(prepared, _row(features, row)) for row in range(TOKENS)], prepared)
    return condition


def _check_rows(condition: Condition, alone: list[Condition], prepared: Prepared) -> None:
    assert isinstance(condition, Condition), f"a Condition, not {type(condition).__name__}"
    assert len(condition) == TOKENS, "a row of the condition for each query"
    scores, alpha = condition.global_scores, condition.alpha
    if scores is not None and alpha is not None:
        assert scores.ndim == 2 and len(scores) == TOKENS, f"global scores (B, E), not {tuple(scores.shape)}"
        assert alpha.shape == (TOKENS,), f"an alpha for each query, not of shape {tuple(alpha.shape)}"
        assert not bool(scores.isnan().any() or alpha.isnan().any()), "numbers as global scores and alpha"
    whole = [condition.term, condition.bare_rows.float()]
    parts = [[one.term for one in alone], [one.bare_rows.float() for one in alone]]
    for part, rows in zip(whole, parts, strict=True):
        known = [row for row in rows if row is not None]
        assert len(known) == (0 if part is None else TOKENS), "a query has a term beside others and alone, or never"
        if part is not None:
            torch.testing.assert_close(
                torch.cat(known), part, atol=1e-4, rtol=1e-4, msg="a query's condition does not depend on the others"
            )


def _features(pool: Pool, draw: torch.Generator) -> QueryFeatures:
    """All that a signal may read of some queries."""
    embedder, profiles = pool.index.embedder, [expert.profile for expert in pool]
    states = [one.hidden for one in profiles if one is not None and one.hidden is not None]
    embedded = (TOKENS, 384 if embedder is None else embedder.dimension)
    grams = tuple((ngrams(f"query {row} of {'some' if row % 2 else 'many'} words"),) for row in range(TOKENS))
    return QueryFeatures(
        TOKENS,
        torch.randn(embedded, generator=draw),
        grams,
        torch.randn(embedded, generator=draw),
        torch.randn(TOKENS, len(states[0]) if states else 8, generator=draw),
    )


def _row(features: QueryFeatures, row: int) -> QueryFeatures:
    parts = [features.instructions, features.grams, features.inputs, features.hidden]
    return QueryFeatures(1, *(None if part is None else part[row : row + 1] for part in parts))
