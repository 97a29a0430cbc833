"""What a base's chat template writes of tools, found by rendering a conversation of our own."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from glider.experts.chat_template import bounded
from glider.experts.chat_template import rendered as rendered_by_card
from glider.serve.call_readers import CallReader, Mark, MarkedReader, TemplateReader

Turns = Sequence[Mapping[str, Any]]
_NAME, _OTHER = "probe_weather", "probe_time"
_KEY, _VALUE, _RESULT, _ID = "probeplace", "probezurich", "proberain", "a1b2c3d4e"
_CALL = {"name": _NAME, "arguments": {_KEY: _VALUE}}
_WRITTEN = re.compile(r"<tool_call>(\s*)(\{.*?\})(\s*)</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Dialect:
    """What a template knows.

    `tools` and `turns` say that it writes the tools there are, and calls and results of earlier turns. `mark` is how it
    writes a call where that is JSON between <tool_call> and </tool_call>. `response_template` is what transformers
    parses the base's answers by.
    """

    tools: bool
    turns: bool
    mark: Mark | None
    response_template: Mapping[str, Any] | None

    def reader(self, tokenizer: Any, prompt: str, tools: Sequence[dict[str, Any]]) -> CallReader:
        """What finds the calls in one answer to a prompt (text)."""
        if self.response_template is not None:
            return TemplateReader(tokenizer, prompt, tools)
        return MarkedReader([tool["function"]["name"] for tool in tools])


def rendered(
    tokenizer: Any,
    template: str | None,
    turns: Turns,
    tools: Sequence[dict[str, Any]] | None = None,
    generation_prompt: bool = True,
) -> str:
    """A conversation in a chat template of the experts' cards, or (None) the base's own; raises what that raises."""
    with bounded(template):
        if template is not None:
            return rendered_by_card(tokenizer, template, turns, generation_prompt, tools)
        return tokenizer.apply_chat_template(
            list(turns), tools=tools, tokenize=False, add_generation_prompt=generation_prompt
        )


@lru_cache(maxsize=16)
def dialect_of(tokenizer: Any, template: str | None, with_tools: bool) -> Dialect:
    """What a template knows, in conversations that name tools or do not."""
    question = [{"role": "user", "content": "Ask."}]
    function = {"type": "function", "id": _ID, "function": _CALL}
    exchange = [
        *question,
        {"role": "assistant", "content": "", "tool_calls": [function]},
        {"role": "tool", "tool_call_id": _ID, "name": _NAME, "content": _RESULT},
    ]
    tools = [_tool(_OTHER)] if with_tools else None
    first, second = (_tried(tokenizer, template, turns, tools) for turns in (question, exchange))
    turns = all(word in second for word in (_NAME, _VALUE, _RESULT))
    response_template, mark = _response_template(tokenizer), _mark(second)
    if mark is not None and response_template is not None and not _reads(tokenizer, first, mark):
        mark = None
    return Dialect(_OTHER in first, turns, mark, response_template)


def _response_template(tokenizer: Any) -> Mapping[str, Any] | None:
    """The tokenizer's, where transformers can use it."""
    template = getattr(tokenizer, "response_template", None)
    if template is None:
        return None
    try:
        tokenizer.get_response_parser(prefix="", tools=[])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return template


def _tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]}
    return {"type": "function", "function": {"name": name, "description": "A probe.", "parameters": parameters}}


def _tried(tokenizer: Any, template: str | None, turns: Turns, tools: Sequence[dict[str, Any]] | None) -> str:
    try:
        return rendered(tokenizer, template, turns, tools)
    except Exception:  # a template may raise what it likes about turns that it does not know
        return ""


def _mark(text: str) -> Mark | None:
    written = _WRITTEN.search(text)
    if written is None:
        return None
    try:
        return Mark(written[1], written[3]) if json.loads(written[2]) == _CALL else None
    except ValueError:
        return None


def _reads(tokenizer: Any, prompt: str, mark: Mark) -> bool:
    """Whether transformers' parser reads a call that is written so."""
    reader = TemplateReader(tokenizer, prompt, [_tool(_NAME)])
    text = f"<tool_call>{mark.before}{json.dumps(_CALL)}{mark.after}</tool_call>"
    calls = [*reader.feed(text).calls, *reader.rest().calls]
    return [(call.name, json.loads(call.arguments)) for call in calls] == [(_NAME, _CALL["arguments"])]
