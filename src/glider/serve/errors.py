"""Faults in the form that OpenAI's clients read: {"error": {message, type, param, code}}."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from glider.errors import BatchingError, EndpointError, GliderError, MissingDependency, QueryError, RouterError
from glider.printable import printable

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "body_too_large"}
_PYTHON = re.compile(r"^Value error, | or instance of \w+| or object to extract fields from| after validation")
_ABSENT = ("missing", "field_absent", "union_tag_not_found")
log = logging.getLogger("glider.serve")
LONGEST = 1000  # characters of a message


class ApiError(Exception):
    """The error that a client receives for a refused or failed request."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    @property
    def body(self) -> dict[str, Any]:
        """What OpenAI's clients read."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = printable(self.message, LONGEST)  # what a client said may stand in it
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        headers = {} if self.retry is None else {"Retry-After": str(self.retry)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)

    @classmethod
    def of(cls, fault: Exception, param: str | None = None) -> "ApiError":
        """The error for a fault: the user's mistakes in full, ours without internal details."""
        if isinstance(fault, ApiError):
            return fault
        if isinstance(fault, QueryError | RouterError):
            return cls(400, str(fault), param=param, code="invalid_value")
        if isinstance(fault, MissingDependency):
            return cls(501, str(fault), param=param, code="not_installed")
        if isinstance(fault, EndpointError):  # names an address, and what stands there
            log.error("a model endpoint: %s", fault)
            return cls(500, "a model endpoint of the server failed; its log says why", code="failed")
        if isinstance(fault, GliderError) and not isinstance(fault, BatchingError):  # that one quotes what broke
            return cls(500, str(fault), code="failed")
        return cls(500, "the server failed at this request; its log says why", code="internal_error")


def invalid(errors: Sequence[Any], body: Any) -> ApiError:
    """One error for what pydantic found in a body, naming the field: of a union's branches the furthest."""
    places = [_place(error, body) for error in errors]
    alike = [number for number, place in enumerate(places) if place[:1] == places[0][:1]]
    deepest = max(alike, key=lambda number: _progress(errors[number], places[number]))
    first, place = errors[deepest], places[deepest]
    param = printable(".".join(place)) or None
    kind = first["type"]
    if kind == "extra_forbidden":
        return ApiError(400, f"the field {param} is not supported here", param=param, code="unsupported_parameter")
    if not place:
        reason = "it is empty" if kind == "missing" else first["msg"]
        return ApiError(400, f"the body is no JSON object of this request: {reason}", code="invalid_json")
    if kind in _ABSENT:
        state = "null, where a value is wanted" if _is_null(body, place) else "missing"
        return ApiError(400, f"the field {param} is {state}", param=param, code="missing_required_parameter")
    alternatives = [one for one, other in zip(errors, places, strict=True) if other == place]
    message = _message(alternatives if kind.endswith("_type") else [first])
    return ApiError(400, f"{param}: {message}", param=param, code="invalid_value")


def absent(field: str) -> PydanticCustomError:
    """The fault of a model that lacks a field which only some of its kind need; `invalid` names the field."""
    return PydanticCustomError("field_absent", "{field} is missing", {"field": field})


def shutting_down() -> ApiError:
    """The error of a request that the server has no time for any more."""
    return ApiError(503, "the server is shutting down", code="shutting_down", retry=5)


def require_one(**fields: Any) -> None:
    """Raise `ApiError` unless exactly one of these fields has a value."""
    count = sum(value is not None for value in fields.values())
    if count != 1:
        names, first = " or ".join(fields), next(iter(fields))
        state = "none is there" if count == 0 else "more than one is there"
        raise ApiError(400, f"one of the fields {names} is wanted, and {state}", param=first, code="invalid_value")


def _progress(error: Any, place: list[str]) -> Any:
    """How far a union's branch came before this fault: past the type of what stands there, then the deepest, then the
    furthest in a list."""
    kind = error["type"]
    numbers = [(len(part), part) for part in place if part.isdecimal()]  # in their order, however long names are
    return not kind.endswith("_type"), len(place), kind == "literal_error", numbers


def _message(errors: Sequence[Any]) -> str:
    """What a field should be: of several types, any."""
    value, messages = errors[0]["input"], []
    for error in errors:
        message = _PYTHON.sub("", error["msg"]).replace("tuple", "list")
        message = message.replace("dictionary", "object").replace("Dictionary", "Object")
        if error["type"] == "union_tag_invalid":
            value = value.get(*_field_within(error))
            message = f"Input should be one of {error['ctx']['expected_tags']}"
        messages.append(message.removeprefix("Input should be ") if messages else message)
    return " or ".join(dict.fromkeys(messages)) + (", not null" if value is None else "")


def _place(error: Any, body: Any) -> list[str]:
    """The field of an error. Pydantic's place has the branches of unions too, which no client knows."""
    kind, parts = error["type"], [*error["loc"], *_field_within(error)]
    if not parts:  # the body as a whole
        return []
    *above, last = parts
    place = []
    for part in above:
        if _has(body, part):
            place.append(str(part))
            body = body[part]
    if body is None and place[-1:] == [str(last)]:  # a branch that has the name of its field, which is null
        return place
    return [*place, str(last)] if _has(body, last) or kind in _ABSENT else place


def _field_within(error: Any) -> list[str]:
    """The field that an error tells of beside its place: the one that a model lacks, or that chooses a branch."""
    if error["type"] == "field_absent":
        return [error["ctx"]["field"]]
    return [error["ctx"]["discriminator"].strip("'")] if error["type"].startswith("union_tag_") else []


def _is_null(body: Any, place: list[str]) -> bool:
    """Whether null stands at a place, rather than nothing."""
    for part in place:
        key: Any = int(part) if isinstance(body, list) and part.isdecimal() else part
        if not _has(body, key):
            return False
        body = body[key]
    return body is None


def _has(value: Any, part: Any) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and 0 <= part < len(value)


def of_request(fault: Exception) -> ApiError:
    """The error for whatever ended a request, those of the framework too."""
    if isinstance(fault, RequestValidationError):
        return invalid([{**one, "loc": one["loc"][1:]} for one in fault.errors()], fault.body)
    if isinstance(fault, HTTPException):
        return ApiError(fault.status_code, str(fault.detail), code=_CODES.get(fault.status_code, "refused"))
    return ApiError.of(fault)
