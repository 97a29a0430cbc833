"""A router from plain settings, as a command line or a file gives them."""

from collections.abc import Mapping
from typing import Any

from glider.errors import RouterError
from glider.routing.base import Router, routers
from glider.routing.select import TopK, TopP


def router_from(name: str, settings: Mapping[str, Any]) -> Router:
    """The router `name` with settings in which `top_k` or `top_p` may stand for the selection of experts.

    Methods that choose once for a query call `top_k` their k. Raises `RouterError` for an unknown router or setting.
    """
    plain = dict(settings)
    top_k, top_p = plain.pop("top_k", None), plain.pop("top_p", None)
    if top_k is not None and top_p is not None:
        raise RouterError("top_k or top_p", "both", "Give one of them.")
    if top_k is None and top_p is None:
        return routers.create(name, **plain)
    known = routers.settings(name)
    if top_k is not None and "k" in known:
        return routers.create(name, k=top_k, **plain)
    if "select" not in known:
        raise RouterError("a router that selects experts, for top_k or top_p", name, "Leave the setting out.")
    select = TopP(top_p) if top_p is not None else TopK(top_k)  # pyright: ignore[reportArgumentType]
    return routers.create(name, select=select, **plain)
