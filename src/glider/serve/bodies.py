"""A request's JSON, counted before it is parsed: like a file, it comes from a stranger."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import cache, partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from glider.files.json_text import parse_json
from glider.serve.errors import ApiError
from glider.serve.lanes import Lanes

LARGE = 64 * 1024  # bytes, parsed in some milliseconds
MOST_MEMBERS = 200_000  # values of objects and lists of one body; a prompt in tokens has so many


class _Request(Request):
    """A request whose JSON has no half characters, no repeated names, and bounded depth and number of values."""

    body_form: type[BaseModel] | None = None

    async def json(self) -> Any:
        content = await self.body()
        if len(content) > LARGE:  # other requests' tokens need not wait for it
            work = partial(_formed, content, self.body_form)
            return await asyncio.wrap_future(_apart().submit(self.headers.get("authorization", ""), work))
        return _parsed(content)


@cache
def _apart() -> Lanes:
    """One thread for all large bodies, where the keys take turns: the event loop competes with one of them at most."""
    return Lanes("glider-bodies")


def _parsed(content: bytes) -> Any:
    try:
        return parse_json(content, MOST_MEMBERS)
    except (ValueError, RecursionError) as fault:
        raise HTTPException(400, f"the body is no JSON that is taken here: {str(fault)[:200]}") from fault


def _formed(content: bytes, form: type[BaseModel] | None) -> Any:
    """A body in its form already, which the framework then takes as it is: thousands of items take it half a second."""
    value = _parsed(content)
    if form is None:
        return value
    try:
        return form.model_validate(value)
    except ValidationError as fault:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in fault.errors(include_url=False)]
        raise RequestValidationError(errors, body=value) from fault


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        annotation = None if self.body_field is None else self.body_field.field_info.annotation
        form = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None

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
            read = _Request(request.scope, request.receive)
            read.body_form = form
            try:
                return await handle(read)
            except HTTPException as fault:
                if isinstance(fault.__cause__, RequestValidationError):  # which the framework takes for a fault of JSON
                    raise fault.__cause__ from None
                raise

        return bounded


def router() -> APIRouter:
    """A router whose bodies are read so."""
    return APIRouter(route_class=_Route)
