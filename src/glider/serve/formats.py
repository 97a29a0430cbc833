"""`response_format`: from the field to a grammar."""

import json
from collections.abc import Sequence

from glider.serve.errors import ApiError
from glider.serve.grammars import Grammar, Schema
from glider.serve.schemas import Sampling, SchemaFormat

_PARAM = "response_format"
_OBJECT = {"type": "object"}


def format_grammar(request: Sampling) -> Grammar | None:
    """What the answers of a request must be; None for text. Raises `ApiError`."""
    schema = format_schema(request)
    if schema is None:
        return None
    refuse_ends(request, "response_format")
    return Grammar.of_schema(schema)


def format_schema(request: Sampling) -> Schema | None:
    """The schema that the answers of a request keep to; None for text. Raises `ApiError`."""
    form = request.response_format
    if form is None or form.type == "text":
        return None
    return Schema.of(form.json_schema.schema_ if isinstance(form, SchemaFormat) else _OBJECT, _PARAM)


def refuse_ends(request: Sampling, what: str, fields: Sequence[str] = ("stop", "stop_token_ids", "ignore_eos")) -> None:
    """Raise `ApiError` for a request that would end an answer elsewhere than its form does."""
    for field in fields:
        if getattr(request, field):
            message = f"{field} would end the answer elsewhere than {what} does"
            raise ApiError(400, message, param=field, code="unsupported_parameter")


def require_json(text: str) -> None:
    """Raise `ApiError` for an answer that should be JSON and is not: never one that is not what was asked for."""
    try:
        json.loads(text)
    except ValueError as fault:
        raise format_error("JSON") from fault


def format_error(what: str) -> ApiError:
    message = f"the answer is not the {what} that was asked for; the tokenizer of this base writes other text"
    return ApiError(500, message, code="format_not_kept")
