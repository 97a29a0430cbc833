"""The describer `openai`: any endpoint that speaks OpenAI's chat protocol."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from glider.errors import EndpointError
from glider.instructions.describers import Written, describer
from glider.instructions.endpoint import Endpoint
from glider.progress import Tick

_LONGEST = 1_000_000  # bytes of a reply
_MILLION = 1_000_000
# how servers say why a reply ends before its time
_CUT = frozenset({"length", "max_tokens", "model_length", "max_output_tokens", "incomplete"})
_FILTERED = frozenset({"content_filter", "content-filter", "safety", "recitation", "blocklist", "refusal"})
_BROKEN = frozenset({"error", "abort", "aborted", "cancelled", "insufficient_system_resource"})
_SENTENCE_END = re.compile(r"""[.!?]["')\]]*(?=\s|$)""")


@describer("openai")
class OpenAIDescriber(Endpoint):
    """A chat model of an endpoint, at temperature 0."""

    max_tokens: int = Field(160, ge=8, description="Longest reply, in tokens.")
    price_in: float = Field(0.0, ge=0, description="Price of a million tokens read.")
    price_out: float = Field(0.0, ge=0, description="Price of a million tokens written.")
    options: dict[str, Any] = Field(
        {}, description="More fields of the request; None takes one out (some models refuse temperature)."
    )

    @model_validator(mode="after")
    def _installed(self) -> "OpenAIDescriber":
        self.require_client()
        return self

    @property
    def name(self) -> str:
        return f"openai:{self.argument}"

    @property
    def makes(self) -> dict[str, Any] | None:
        return {"describer": self.name, "address": self.shown, **self._sampling}

    @property
    def _sampling(self) -> dict[str, Any]:
        fields = {"temperature": 0, "max_tokens": self.max_tokens, **self.options}
        return {name: value for name, value in sorted(fields.items()) if value is not None}

    def write(self, prompts: Sequence[str], tick: Tick = lambda done: None) -> list[Written]:
        requests = [
            {"messages": [{"role": "user", "content": prompt}], "extra_body": self._sampling} for prompt in prompts
        ]
        return [self._written(reply) for reply in self.ask("chat", requests, _LONGEST, tick)]

    def _written(self, reply: dict[str, Any] | EndpointError) -> Written:
        if isinstance(reply, EndpointError):
            return Written(fault=str(reply))
        usage = reply.get("usage")
        read, wrote = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        cost = (read * self.price_in + wrote * self.price_out) / _MILLION
        text = _content(reply)
        finish = None if text is None else _finish(reply)
        text = None if text is None else self.strike(text)
        fault = None if text is not None else f"{self.name} sent no message"
        if text is not None and finish in _FILTERED:
            text, fault = None, f"{self.name} sent a reply that its filter cut"
        elif text is not None and finish in _BROKEN:
            text, fault = None, f"{self.name} broke its reply off ({finish})"
        elif text is not None and finish in _CUT:
            text = _whole_sentences(text)
            fault = None if text else f"{self.name} was cut after {self.max_tokens} tokens: raise max_tokens"
        return Written(text, fault, read, wrote, cost)


def _content(reply: dict[str, Any]) -> str | None:
    try:
        content = reply["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        return None
    if isinstance(content, list):  # parts, of which thoughts are not meant for the user
        texts = [text for part in content if (text := _text_of(part)) is not None]
        content = "".join(texts) if texts else None
    return content if isinstance(content, str) else None


def _text_of(part: Any) -> str | None:
    """The text of a part of a message, if it is one for the user."""
    if isinstance(part, dict) and part.get("type") in ("text", "output_text"):
        part = part.get("text")
        part = part.get("value") if isinstance(part, dict) else part
    return part if isinstance(part, str) else None


def _finish(reply: dict[str, Any]) -> str | None:
    """Why the reply ends; it has a message."""
    choice = reply["choices"][0]
    reason = choice.get("finish_reason") if isinstance(choice, dict) else None
    return reason.lower() if isinstance(reason, str) else None


def _whole_sentences(text: str) -> str | None:
    """A reply that was cut, up to the last sentence that it ends."""
    ends = list(_SENTENCE_END.finditer(text))
    return text[: ends[-1].end()] if ends else None


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and 0 <= value < _MILLION else 0
