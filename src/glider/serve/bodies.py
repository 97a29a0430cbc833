"""A request's JSON, counted before it is parsed: like a file, it comes from a stranger."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from glider.files.json_text import parse_json
from glider.serve.errors import ApiError

LARGE = 64 * 1024  # bytes, parsed in some milliseconds
MOST_MEMBERS = 200_000  # values of objects and lists of one body; a prompt in tokens has so many


class _Request(Request):
    """A request whose JSON has no half characters, no repeated names, and bounded depth and number of values."""

    async def json(self) -> Any:
        content = await self.body()
        try:
            if len(content) > LARGE:  # other requests' tokens need not wait for it
                return await asyncio.to_thread(parse_json, content, MOST_MEMBERS)
            return parse_json(content, MOST_MEMBERS)
        except (ValueError, RecursionError) as fault:
            raise HTTPException(400, f"the body is no JSON that is taken here: {str(fault)[:200]}") from fault


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
            if request.method == "POST" and kind != "application/json":  # a page's form may not ask either
                raise ApiError(415, "the body must be application/json", code="unsupported_media_type")
            coding = request.headers.get("content-encoding", "identity").strip().lower()
            if coding != "identity":
                raise ApiError(415, f"a body without {coding[:40]!r} coding", code="unsupported_media_type")
            for name in request.query_params if request.method == "POST" else ():
                message = f"the field {name} belongs into the body"
                raise ApiError(400, message, param=name, code="unsupported_parameter")
            return await handle(_Request(request.scope, request.receive))

        return bounded


def router() -> APIRouter:
    """A router whose bodies are read so."""
    return APIRouter(route_class=_Route)
