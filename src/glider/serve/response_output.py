"""An answer as items of the responses API: reasoning, messages and calls, built while they are told."""

import copy
from collections.abc import Iterator
from typing import Any

from glider.serve.call_readers import Call
from glider.serve.exchange import Delta
from glider.serve.token_texts import TokenTexts

Event = dict[str, Any]


class Output:
    """The items of one answer; those of a stream are those of the whole answer, as both take up the same additions."""

    def __init__(self, name: str, texts: TokenTexts | None = None):
        """`name` is part of the items' ids. With `texts` the log-probabilities of the messages' tokens are told."""
        self._name, self._texts = name, texts
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text has not come yet
        self.items: list[dict[str, Any]] = []
        self.reasoning_tokens = 0

    def add(self, delta: Delta) -> Iterator[Event]:
        """Take up an addition; the events that tell it."""
        if self._texts is not None and delta.token is not None:
            scored = self._texts.scored(delta.token.id, delta.token.logprob, delta.token.likeliest)
            self._logprobs.append(_with_bytes(scored))
        if delta.reasoning or delta.calls:
            self._logprobs = []  # of what is no message
        if delta.reasoning:
            self.reasoning_tokens += delta.token is not None
            yield from self._write("reasoning", delta.reasoning)
        if delta.text:
            yield from self._write("message", delta.text)
        for call in delta.calls:
            yield from self._finish()
            yield from self._call(call)

    def end(self, status: str) -> Iterator[Event]:
        """The answer has ended; one of nothing has an empty message."""
        if not self.items:
            yield from self._begin("message")
        item = self._open
        if self._logprobs and item is not None and item["type"] == "message":  # of tokens that are no text
            yield from self._write("message", "")
        yield from self._finish(status)

    @property
    def _open(self) -> dict[str, Any] | None:
        return self.items[-1] if self.items and self.items[-1]["status"] == "in_progress" else None

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    def _write(self, kind: str, text: str) -> Iterator[Event]:
        if self._open is None or self._open["type"] != kind:
            yield from self._finish()
            yield from self._begin(kind)
        part = self.items[-1]["content"][0]
        part["text"] += text
        event = {"type": f"response.{part['type']}.delta", **self._place, "content_index": 0, "delta": text}
        if kind == "reasoning":
            yield event
            return
        logprobs, self._logprobs = self._logprobs, []
        part["logprobs"] += logprobs
        yield {**event, "logprobs": [_of_event(one) for one in logprobs]}

    def _begin(self, kind: str) -> Iterator[Event]:
        number = f"_{len(self.items)}" if self.items else ""
        if kind == "message":
            item = {"id": f"msg_{self._name}{number}", "type": kind, "role": "assistant", "status": "in_progress"}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item = {"id": f"rs_{self._name}{number}", "type": kind, "summary": [], "status": "in_progress"}
            part = {"type": "reasoning_text", "text": ""}
        self.items.append({**item, "content": []})
        yield {"type": "response.output_item.added", "output_index": self._index, "item": {**item, "content": []}}
        self.items[-1]["content"].append(part)
        yield {"type": "response.content_part.added", **self._place, "content_index": 0, "part": copy.deepcopy(part)}

    def _finish(self, status: str = "completed") -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        part, place = dict(item["content"][0]), {**self._place, "content_index": 0}
        event = {"type": f"response.{part['type']}.done", **place, "text": part["text"]}
        if item["type"] == "message":
            event["logprobs"] = [_of_event(one) for one in part["logprobs"]]
        yield event
        yield {"type": "response.content_part.done", **place, "part": part}
        item["status"] = status
        yield {"type": "response.output_item.done", "output_index": self._index, "item": dict(item)}

    def _call(self, call: Call) -> Iterator[Event]:
        head = {"id": f"fc_{self._name}_{len(self.items)}", "type": "function_call", "call_id": call.id}
        item = {**head, "name": call.name, "arguments": "", "status": "in_progress"}
        self.items.append({**item, "arguments": call.arguments, "status": "completed"})
        yield {"type": "response.output_item.added", "output_index": self._index, "item": item}
        yield {"type": "response.function_call_arguments.delta", **self._place, "delta": call.arguments}
        event = {"type": "response.function_call_arguments.done", **self._place}
        yield {**event, "name": call.name, "arguments": call.arguments}
        yield {"type": "response.output_item.done", "output_index": self._index, "item": dict(self.items[-1])}

    @property
    def _index(self) -> int:
        return len(self.items) - 1


def _with_bytes(scored: dict[str, Any]) -> dict[str, Any]:
    """A token in the form of this API, whose bytes are a list; an empty one where they are not known."""
    top = [{**one, "bytes": one["bytes"] or []} for one in scored["top_logprobs"]]
    return {**scored, "bytes": scored["bytes"] or [], "top_logprobs": top}


def _of_event(scored: dict[str, Any]) -> dict[str, Any]:
    """A token in the form of the events of a text, which have no bytes."""
    top = [{"token": one["token"], "logprob": one["logprob"]} for one in scored["top_logprobs"]]
    return {"token": scored["token"], "logprob": scored["logprob"], "top_logprobs": top}
