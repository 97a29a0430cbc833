"""What a router makes of a pool, with errors that name the router."""

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Prepared, Router, routers


def prepare(router: Router, pool: Pool) -> Prepared:
    """`router.prepare(pool)`; raises its `RouterError` with the router's name in it."""
    try:
        return router.prepare(pool)
    except RouterError as fault:
        raise RouterError(f"{fault.wanted} (router {name_of(router)})", fault.got, fault.remedy) from fault


def name_of(router: Router) -> str:
    """The registry's name of a router, or its class's for one that is not registered."""
    registered = (entry.name for entry in routers if entry.make is type(router))
    own = getattr(router, "registered_as", None)  # where one class serves several names
    return own or next(registered, type(router).__name__)
