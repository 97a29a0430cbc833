"""Calls in an answer's text, however it is cut into pieces, and what a template is found to write."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from transformers import AddedToken

from glider.inference.streaming import Decoder
from glider.serve.call_readers import CallReader, FormedReader, MarkedReader, Read, TemplateReader
from glider.serve.dialect import dialect_of
from glider.serve.errors import ApiError
from glider.serve.schemas import ChatRequest
from glider.serve.tools import form_of

from ..conftest import byte_tokenizer
from .test_tools import RAIN, TEMPLATE

CALL = '<tool_call>\n{"name": "rain", "arguments": {"at": "Rome </b>", "n": [1, 2.5]}}\n</tool_call>'
OTHER = CALL.replace('"rain"', '"snow"')
BROKEN = CALL.replace("}}", "}")
NAMELESS = [CALL.replace('"rain"', name) for name in ('["rain"]', '{"rain": 1}', "null", "1", "[[]]")]
VALUE = {"at": "Rome </b>", "n": [1, 2.5]}
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<a>",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"content": "text"},
    },
}


def read(reader: CallReader, pieces: list[str]) -> tuple[str, list[Any], str]:
    parts = [*map(reader.feed, pieces), reader.rest()]
    calls = [(call.name, json.loads(call.arguments)) for part in parts for call in part.calls]
    assert isinstance(parts[0], Read)
    return "".join(part.text for part in parts), calls, "".join(part.reasoning for part in parts)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[begin:end] for begin, end in itertools.pairwise(ends)]


TEXTS = {
    "": ("", []),
    "a <tool b < tool_call>": ("a <tool b < tool_call>", []),
    " two \n lines \n": (" two \n lines \n", []),
    CALL: ("", [("rain", VALUE)]),
    f"Well.\n\n{CALL}\n{CALL}\n": ("Well.", [("rain", VALUE)] * 2),
    f"{CALL} and so": ("and so", [("rain", VALUE)]),
    f"see {OTHER}": (f"see {OTHER}", []),
    f"see {BROKEN}.": (f"see {BROKEN}.", []),
    **{text: (text, []) for text in NAMELESS},  # of a name that is a list or an object the request failed
    f"see {CALL[:-3]}": (f"see {CALL[:-3]}", []),
}


@settings(deadline=None)
@given(text=st.sampled_from(sorted(TEXTS)), places=st.lists(st.integers(0, 300), max_size=30))
def test_marked_calls_are_read_however_they_come(text: str, places: list[int]) -> None:
    assert read(MarkedReader(["rain"]), cut(text, places)) == (*TEXTS[text], "")


@settings(deadline=None)
@given(text=st.sampled_from(sorted(TEXTS)), places=st.lists(st.integers(0, 300), max_size=30))
def test_nothing_that_was_written_is_lost(text: str, places: list[int]) -> None:
    """Without a tool of that name all of it is text."""
    assert read(MarkedReader(["f"]), cut(text, places))[0] == text


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer: Any = byte_tokenizer(chat=True)
    tokenizer.chat_template, tokenizer.response_template = TEMPLATE, RESPONSE_TEMPLATE
    return tokenizer


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_transformers_own_parser_is_asked(tokenizer: Any, size: int) -> None:
    def parsed(text: str) -> tuple[str, list[Any], str]:
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        return read(TemplateReader(tokenizer, "<a>", [RAIN]), pieces)

    assert parsed(f"<think>hm</think>Well.{CALL}{CALL}") == ("Well.", [("rain", VALUE)] * 2, "hm")
    assert parsed(f"see {OTHER}") == (f"see {OTHER}", [], "")
    assert parsed(f"see {BROKEN} it") == (f"see {BROKEN} it", [], "")
    assert parsed(f"see{CALL[:-3]}") == (f"see{CALL[:-3]}", [], "")


class Model:
    """What reads a template: a tokenizer and the form of prompts."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.prompt, self.template = tokenizer, self, None


def test_what_a_template_writes_is_found() -> None:
    tokenizer: Any = byte_tokenizer(chat=True)
    plain = dialect_of(tokenizer, None, True)
    assert (plain.tools, plain.turns, plain.mark) == (False, False, None)
    full = dialect_of(tokenizer, TEMPLATE, True)
    assert full.tools and full.turns and full.mark is not None
    assert (full.mark.before, full.mark.after) == ("\n", "\n")
    other = dialect_of(tokenizer, TEMPLATE.replace("tool_call>", "call>"), True)
    assert other.tools and other.turns and other.mark is None
    deaf = dialect_of(
        tokenizer, TEMPLATE.replace("{{ m.content }}", "{% if m.role != 'tool' %}{{ m.content }}{% endif %}"), True
    )
    assert deaf.tools and not deaf.turns


@pytest.mark.parametrize("special", [None, False, True], ids=["text", "tokens", "special tokens"])
@pytest.mark.parametrize("fields", [{"tool_choice": "required"}, {"parallel_tool_calls": False}, {}], ids=str)
def test_marks_may_be_tokens(special: bool | None, fields: dict[str, Any]) -> None:
    """A grammar whose text is a mark does not take the token that is one, such as Qwen's."""
    tokenizer: Any = byte_tokenizer(chat=True)
    tokenizer.chat_template = TEMPLATE
    if special is not None:
        marks = [AddedToken(mark, special=special) for mark in ("<tool_call>", "</tool_call>")]
        tokenizer.add_tokens(marks, special_tokens=special)
    strict = {"type": "function", "function": {**RAIN["function"], "strict": True}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "tools": [strict], **fields}
    form = form_of(Model(tokenizer), ChatRequest.model_validate(body), [5])  # pyright: ignore[reportArgumentType]
    assert form.grammar is not None and form.reader is not None
    call = '<tool_call>\n{"name": "rain", "arguments": {"at": "Bonn", "days": 3}}\n</tool_call>'
    reach = from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=[1])
    for text, fits in ((call, True), (call.replace("3", "30"), False), (call.replace("rain", "snow"), False)):
        ids = tokenizer(text).input_ids
        matcher = LLMatcher(reach, form.grammar.text, log_level=0)
        assert not matcher.get_error()
        assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) is fits
    decoder = Decoder(tokenizer, exact=True, special=form.marked)
    ids = tokenizer(f"Well. {call}" if "tool_choice" not in fields else call).input_ids
    text, calls, _ = read(form.reader(), [*map(decoder.add, ids), decoder.rest()])
    assert (text, calls) == ("Well." if "tool_choice" not in fields else "", [("rain", {"at": "Bonn", "days": 3})])


def test_a_response_template_that_is_none_is_not_used() -> None:
    tokenizer: Any = byte_tokenizer(chat=True)
    tokenizer.response_template = {"fields": {"content": {"content": "text"}}}
    assert dialect_of(tokenizer, TEMPLATE, True).response_template is None
    assert dialect_of(tokenizer, TEMPLATE, True).mark is not None


def test_a_form_that_is_not_json_cannot_be_forced(tokenizer: Any) -> None:
    """Where transformers reads a base's calls otherwise, they are read, and no grammar is known."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "tools": [RAIN]}
    asked = ChatRequest.model_validate(body)
    form = form_of(Model(tokenizer), asked, [5])  # pyright: ignore[reportArgumentType]
    assert form.grammar is None and form.reader is not None
    assert read(form.reader(), [CALL])[1] == [("rain", VALUE)]
    forced = ChatRequest.model_validate({**body, "tool_choice": "required"})
    assert form_of(Model(tokenizer), forced, [5]).grammar is not None  # pyright: ignore[reportArgumentType]
    other: Any = byte_tokenizer(chat=True)
    other.chat_template = TEMPLATE.replace("tool_call>", "call>")
    other.response_template = json.loads(json.dumps(RESPONSE_TEMPLATE).replace("tool_call>", "call>"))
    assert form_of(Model(other), asked, [5]).grammar is None  # pyright: ignore[reportArgumentType]
    for field, value in (("tool_choice", "required"), ("parallel_tool_calls", False)):
        with pytest.raises(ApiError) as caught:
            form_of(Model(other), ChatRequest.model_validate({**body, field: value}), [5])  # pyright: ignore
        assert caught.value.param == field


@pytest.mark.parametrize("arguments", ['{"n": 1e999}', '{"n": NaN}', '{"n": 1, "n": 2}', '{"n": ' + "9" * 5000 + "}"])
def test_arguments_that_are_no_json_of_one_meaning_are_text(arguments: str) -> None:
    """They were told as `Infinity` and `NaN`, which no parser of JSON takes; of two values the last one was."""
    text = f'<tool_call>{{"name": "rain", "arguments": {arguments}}}</tool_call>'
    assert read(MarkedReader(["rain"]), [text]) == (text, [], "")


@pytest.mark.parametrize("text", ['{"a": "' + CALL.replace('"', '\\"').replace("\n", "") + '"}', "[]", "", " "])
def test_in_json_marks_are_text(text: str) -> None:
    for pieces in ([text], list(text)):
        assert read(FormedReader(MarkedReader(["rain"])), pieces) == (text, [], "")
    assert read(FormedReader(MarkedReader(["rain"])), list(CALL)) == ("", [("rain", VALUE)], "")
