"""`tools` and `tool_choice`: what a request may ask of this base, and the grammar of its calls."""

import json
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from glider.serve.call_readers import CallReader, FormedReader, Mark
from glider.serve.dialect import Dialect, dialect_of
from glider.serve.errors import ApiError
from glider.serve.formats import format_grammar, format_schema, refuse_ends
from glider.serve.grammar_child import SPACING
from glider.serve.grammars import Grammar, Schema
from glider.serve.schemas import ChatRequest, NamedChoice, Tool

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_SPACING = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}  # what templates write


@dataclass(frozen=True)
class Form:
    """What the answers of a request are written by, and read by (`reader` of one answer; None: they are text)."""

    grammar: Grammar | None = None
    reader: Callable[[], CallReader] | None = None
    marked: bool = False  # calls begin with a special token, which text does not show


def offered(request: ChatRequest) -> list[dict[str, Any]] | None:
    """The tools that the prompt tells of. Raises `ApiError` for fields that need tools, or that name none of them."""
    if not request.tools:
        for field in ("tool_choice", "parallel_tool_calls"):
            if getattr(request, field) not in (None, "none"):
                raise ApiError(400, f"{field} needs tools", param=field, code="unsupported_parameter")
        return None
    names = [tool.function.name for tool in request.tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "a function's name comes twice", param="tools", code="invalid_value")
    if isinstance(request.tool_choice, NamedChoice) and request.tool_choice.function.name not in names:
        raise ApiError(400, "tool_choice names none of the tools", param="tool_choice", code="invalid_value")
    return None if request.tool_choice == "none" else [tool.rendered for tool in request.tools]


def require_tools(model: "RoutedModel") -> Dialect:
    """What this base's template knows; raises `ApiError` where it writes no tools, or calls that nothing reads."""
    dialect = dialect_of(model.tokenizer, model.prompt.template, True)
    message = None
    if not dialect.tools:
        message = "the chat template of this base knows no tools"
    elif dialect.mark is None and dialect.response_template is None:
        message = "the chat template of this base writes calls in a form that is not read here"
    if message is not None:
        raise ApiError(400, message, param="tools", code="unsupported_value")
    return dialect


def form_of(model: "RoutedModel", request: ChatRequest, prompt: Sequence[int]) -> Form:
    """How the answers of a chat request are written and read. Raises `ApiError`."""
    tools = offered(request)
    if tools is None:
        return Form(format_grammar(request))
    dialect, tokenizer = require_tools(model), model.tokenizer
    text = tokenizer.decode(list(prompt))
    tokens = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    marked = dialect.response_template is not None or any(tokens.get(mark) for mark in (_OPEN, _CLOSE))
    grammar = _grammar(request, dialect.mark, frozenset(tokens))

    def reader() -> CallReader:
        calls = dialect.reader(tokenizer, text, tools)
        return FormedReader(calls) if grammar is not None and grammar.json else calls

    return Form(grammar, reader, marked)


def _grammar(request: ChatRequest, mark: Mark | None, tokens: Set[str]) -> Grammar | None:
    """The grammar that the request's fields need; None where the model may write what it likes.

    `tokens` are those that were added to the vocabulary: a grammar names them, and has the others' text.
    """
    tools, choice = request.tools, request.tool_choice
    forced = choice == "required" or isinstance(choice, NamedChoice)
    answer = None if forced else format_schema(request)
    strict = next((number for number, tool in enumerate(tools) if tool.function.strict), None)
    needs = {"tool_choice": forced, "response_format": answer is not None}
    needs |= {"parallel_tool_calls": request.parallel_tool_calls is False}
    needs |= {f"tools.{strict}.function.strict": strict is not None}
    field = next((field for field, needed in needs.items() if needed), None)
    if field is None:
        return None
    if mark is None:
        message = "calls can be kept to a form only where the base's template writes them as JSON in <tool_call>"
        raise ApiError(400, message, param=field, code="unsupported_value")
    single = request.parallel_tool_calls is False or isinstance(choice, NamedChoice)
    formed = forced or answer is not None
    refuse_ends(request, "a call", ("stop", "stop_token_ids", "ignore_eos") if formed else ("ignore_eos",))
    callable_tools = [
        (number, tool)
        for number, tool in enumerate(tools)
        if not isinstance(choice, NamedChoice) or tool.function.name == choice.function.name
    ]
    calls = "opening body" if single else r'opening body ("\n" opening body)*'
    free = "head body | tail" if single else "(head body)* tail"
    start = calls if forced else free if answer is None else f"answer | {calls}"
    grammar = _calls(start, callable_tools, mark, tokens, "tool_choice" if forced else field)
    if answer is None:
        return grammar
    line = f"answer: %json {json.dumps({'x-guidance': SPACING, **json.loads(answer.text)})}\n"
    return replace(grammar, text=grammar.text + line, schemas=(*grammar.schemas, answer), json=True)


def _calls(start: str, tools: Sequence[tuple[int, Tool]], mark: Mark, tokens: Set[str], param: str) -> Grammar:
    """Text and calls in the form that the template writes."""
    opening, closing = (part if part in tokens else json.dumps(part) for part in (_OPEN, _CLOSE))
    after = f"{json.dumps(mark.after)} " if mark.after else ""
    lines = [
        "%llguidance {}",
        f"start: {start}",
        f"opening: {opening}",
        f"body: ({' | '.join(f'call_{number}' for number, _ in tools)}) {after}{closing}",
        "head: TEXT opening" if _OPEN in tokens else f"head[lazy]: TEXT {opening}",
        "tail: TEXT",
        r"TEXT: /(.|\n)*/",
    ]
    schemas = []
    for number, tool in tools:
        schema = tool.function.arguments
        schemas.append(Schema.of(schema, f"tools.{number}.function.parameters"))
        begin = json.dumps(f'{mark.before}{{"name": "{tool.function.name}", "arguments": ')
        lines.append(f'call_{number}: {begin} arguments_{number} "}}"')
        lines.append(f"arguments_{number}: %json {json.dumps({'x-guidance': _SPACING, **schema})}")
    return Grammar("\n".join([*lines, ""]), tuple(schemas), param, calls=param == "tool_choice")
