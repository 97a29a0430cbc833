"""Checks, before anything is computed, that a router's decisions are valid for a call."""

from glider.errors import QueryError
from glider.routing.base import Router, support_of


def require_support(
    router: Router, queries: int, cached: bool | None = None, *, shares: bool = False, pieces: bool = False
) -> None:
    """Raise `QueryError` for a call for which a router's decisions are not valid.

    Several queries in a pass; a cache of keys and values (`cached`; None where nothing is generated), or none where it
    tells a prompt from its answer; a prompt that is computed once for all its choices (`shares`) or in `pieces`.
    """
    support, name = support_of(router), type(router).__name__
    if queries > 1 and not support.mixed:
        raise QueryError(f"one query at a time (router {name})", str(queries), "Ask them one by one.")
    if cached and not support.cache:
        raise QueryError(f"no cache of keys and values (router {name})", "use_cache", "Give use_cache=False.")
    if cached is False and support.sequences:
        expected = f"a cache of keys and values, which tells a prompt from its answer (router {name})"
        raise QueryError(expected, "use_cache=False", "Give use_cache=True.")
    if pieces and not support.chunked:
        raise QueryError(f"prompts in one pass (router {name})", "prefill_chunk_size", "Leave it out.")
    if shares and not (support.cache and (support.chunked or support.sequences)):
        expected = f"a router that decides a prompt and its answer apart (router {name})"
        raise QueryError(expected, "scores of choices", "Score them by another router.")
