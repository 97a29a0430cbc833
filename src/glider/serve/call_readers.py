"""Finds the calls of tools in an answer's text, as it comes. What is no call stays text."""

import json
import secrets
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from glider.files.json_text import parse_json

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_REASONING = ("reasoning_content", "reasoning", "thinking")  # what response templates call it
_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9  # some templates take no other


@dataclass(frozen=True)
class Mark:
    """What a template writes between <tool_call> and the JSON of a call, and after it."""

    before: str
    after: str


@dataclass(frozen=True)
class Call:
    """A call of a tool; its arguments are JSON text."""

    id: str
    name: str
    arguments: str

    @classmethod
    def of(cls, value: Any, names: Collection[str]) -> "Call | None":
        """From `{"name": ..., "arguments": {...}}`; None for what is no call of these tools."""
        if not isinstance(value, dict):
            return None
        name, arguments = value.get("name"), value.get("arguments")
        if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
            return None
        call_id = "".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH))
        try:
            text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except ValueError:  # numbers beyond floating point
            return None
        return cls(call_id, name, text)

    @property
    def message(self) -> dict[str, Any]:
        """In the form of the chat API."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class Read:
    """What a piece of an answer turned out to be."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    reasoning: str = ""


class CallReader(Protocol):
    """Reads one answer."""

    def feed(self, text: str) -> Read:
        """What is certain after some more text."""
        ...

    def rest(self) -> Read:
        """What was held back, at the end of the answer."""
        ...


class MarkedReader:
    """Calls as JSON between <tool_call> and </tool_call>. Space around a call is no part of the text."""

    def __init__(self, names: Collection[str]):
        self._names = frozenset(names)
        self._held = ""  # space, the beginning of a mark, or a call that has not ended
        self._fresh = False  # a call has ended, and no text has come since

    def feed(self, text: str) -> Read:
        self._held += text
        texts, calls = [], []
        while True:
            begin = self._held.find(_OPEN)
            end = self._held.find(_CLOSE, begin) if begin >= 0 else -1
            if end < 0:
                break
            before, body = self._held[:begin], self._held[begin + len(_OPEN) : end]
            self._held = self._held[end + len(_CLOSE) :]
            call = Call.of(_json(body), self._names)
            if call is None:
                texts.append(f"{self._shown(before)}{_OPEN}{body}{_CLOSE}")
            else:
                texts.append(self._shown(before).rstrip())
                calls.append(call)
            self._fresh = call is not None
        cut = begin if begin >= 0 else _partial(self._held)
        cut = len(self._held[:cut].rstrip())
        text, self._held = self._held[:cut], self._held[cut:]
        return Read("".join(texts) + self._shown(text), tuple(calls))

    def rest(self) -> Read:
        held, self._held = self._held, ""
        return Read(self._shown(held))

    def _shown(self, text: str) -> str:
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return text


class FormedReader:
    """An answer that is either JSON, in which no mark of a call counts, or calls alone."""

    def __init__(self, calls: CallReader):
        self._calls = calls
        self._is_json: bool | None = None

    def feed(self, text: str) -> Read:
        if self._is_json is None and text.strip():
            self._is_json = not text.lstrip().startswith("<")
        return Read(text) if self._is_json else self._calls.feed(text)

    def rest(self) -> Read:
        return self._calls.rest()


class TemplateReader:
    """Calls as transformers' own parser reads them, by the response template of the tokenizer."""

    def __init__(self, tokenizer: Any, prompt: str, tools: Sequence[dict[str, Any]]):
        self._parser = tokenizer.get_response_parser(prefix=prompt, tools=list(tools))
        self._names = [tool["function"]["name"] for tool in tools]
        self._raw = ""  # what the parser holds back, or has of a part that has not ended
        self._inside = self._broken = False

    def feed(self, text: str) -> Read:
        return _joined([self._one(letter) for letter in text])

    def _one(self, letter: str) -> Read:
        """A letter at a time, so that what a part that does not parse began with is known."""
        if self._broken:
            return Read(letter)
        self._raw += letter
        try:
            events = self._parser.feed(letter)
            return self._taken(events)
        except (ValueError, KeyError, TypeError, AttributeError):  # it cannot go on from a part that does not parse
            return self._as_text()

    def rest(self) -> Read:
        if self._broken:
            return Read()
        try:
            _, events = self._parser.finalize()
            return self._taken(events)
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._as_text()

    def _as_text(self) -> Read:
        self._broken, raw, self._raw = True, self._raw, ""
        return Read(raw)

    def _taken(self, events: Sequence[dict[str, Any]]) -> Read:
        texts, reasoning, calls = [], [], []
        for event in events:
            field = event["field"]
            if field == "tool_calls":
                self._inside = event["type"] != "region_close"
                if event["type"] == "region_close":
                    values = event["value"] if isinstance(event["value"], list) else [event["value"]]
                    parts = [Call.of(value.get("function", value), self._names) for value in values]
                    if None in parts:
                        texts.append(self._raw)
                    else:
                        calls += parts
            elif event["type"] == "region_chunk":
                (reasoning if field in _REASONING else texts).append(event["text"])
        if events and not self._inside:
            self._raw = ""
        return Read("".join(texts), tuple(calls), "".join(reasoning))


def _joined(parts: Sequence[Read]) -> Read:
    calls = tuple(call for part in parts for call in part.calls)
    return Read("".join(part.text for part in parts), calls, "".join(part.reasoning for part in parts))


def _json(text: str) -> Any:
    try:
        return parse_json(text.encode())
    except (ValueError, RecursionError):
        return None


def _partial(text: str) -> int:
    """Where the beginning of a mark at the end of a text begins; its length where there is none."""
    longest = next((size for size in range(len(_OPEN) - 1, 0, -1) if text.endswith(_OPEN[:size])), 0)
    return len(text) - longest
