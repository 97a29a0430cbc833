"""Paths and methods as clients write them, and what is said where no route answers."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from glider.serve import errors
from glider.serve.errors import ApiError

_METHODS = ("GET", "HEAD", "POST")
_LIKENESS = 0.8  # of a path to the one that is proposed for it
_LONGEST = 200  # characters of a path in a message


def as_route(scope: Any) -> Any:
    """A request's scope as the routes know it: HEAD is GET, whose body the connection leaves out, and a slash at the
    end of a path is as good as none."""
    path, method = scope["path"], scope["method"]
    if len(path) > 1 and path.endswith("/") and not path.endswith("//"):
        path = path[:-1]
    return {**scope, "path": path, "method": "GET" if method == "HEAD" else method}


def of_routers(routers: Sequence[APIRouter]) -> list[str]:
    """The paths that can be proposed: those without a variable part."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return [route.path for route in routes if "{" not in route.path]


def error_of(fault: Exception, request: Request, paths: Sequence[str]) -> ApiError:
    """The error for whatever ended a request. Where no route is at its path it has the path that was meant, if that
    shows; where the path does not have its method, the methods that it has."""
    if not isinstance(fault, HTTPException) or fault.status_code not in (404, 405):
        return errors.of_request(fault)
    path = request.scope["path"][:_LONGEST]
    what = f"{request.method[:20]} {path}"
    if fault.status_code == 405:
        return ApiError(405, f"{what}: this path takes {' or '.join(_allowed(fault))}", code="method_not_allowed")
    near = _nearest(path, paths)
    advice = "/openapi.json has the paths that there are." if near is None else f"Did you mean {near}?"
    return ApiError(404, f"{what}: nothing is at this path. {advice}", code="not_found")


def headers_of(fault: Exception) -> Mapping[str, str]:
    """The headers of the reply to it."""
    if isinstance(fault, HTTPException) and fault.status_code == 405:
        return {"Allow": ", ".join(_allowed(fault))}
    return getattr(fault, "headers", None) or {}


def _nearest(path: str, paths: Sequence[str]) -> str | None:
    """One that ends the path or is ended by it (/v1/v1/models, /models), else one that looks like it."""
    within = [one for one in paths if len(path) > 1 and (path.endswith(one) or one.endswith(path))]
    return next(iter(difflib.get_close_matches(path, within or paths, 1, 0.0 if within else _LIKENESS)), None)


def _allowed(fault: HTTPException) -> list[str]:
    """The methods that a path has."""
    methods = {one.strip() for one in (fault.headers or {}).get("Allow", "").split(",")}
    return [one for one in _METHODS if one in methods or (one == "HEAD" and "GET" in methods)]
