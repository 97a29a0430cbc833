"""The turns of a chat, read back from a prompt in tokens by the template that renders them.

A template is a program, and is not parsed: it renders chats of known texts, and what stands between these is what parts
the turns of others. Turns count as read only if they render to that very prompt.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from glider.errors import GliderWarning, QueryError
from glider.experts.prompt_format import PromptFormat

Turns = list[dict[str, str]]
_SYSTEM, _FIRST, _ANSWER, _LAST = "SYSTEM0", "USER1", "ANSWER2", "USER3"


def turns_of_prompt(form: PromptFormat, tokenizer: Any, ids: Sequence[int]) -> Turns | None:
    """The turns that a prompt was rendered from, the last one the user's; None where they cannot be told."""
    if form.kind != "chat":
        return None
    whole = tokenizer.decode(list(ids))
    for system in (False, True):
        marks = _marks(form, tokenizer, system)
        turns = None if marks is None else _parted(whole, marks)
        if turns is not None and _rendered(form, tokenizer, turns) == whole:
            return turns
    return None


def _marks(form: PromptFormat, tokenizer: Any, system: bool) -> list[tuple[str, str]] | None:
    """The text before each turn with the turn's role, in a chat of two questions; at last the text after it."""
    texts = {"user": _FIRST, "assistant": _ANSWER}
    turns = [{"role": role, "content": text} for role, text in texts.items()]
    turns = [*turns, {"role": "user", "content": _LAST}]
    if system:
        turns = [{"role": "system", "content": _SYSTEM}, *turns]
    rest, marks = _rendered(form, tokenizer, turns), []
    for turn in turns:
        if rest is None or rest.count(turn["content"]) != 1:
            return None
        before, _, rest = rest.partition(turn["content"])
        marks.append((before, turn["role"]))
    return [*marks, (rest or "", "")]


def _parted(whole: str, marks: list[tuple[str, str]]) -> Turns | None:
    """The turns of a prompt, where the marks stand in it: those before an answer and the next question any times."""
    *begin, (answer, _), (again, _), (end, _) = marks
    turns, rest = Turns(), whole.removesuffix(end)
    if not (answer and again and end) or rest == whole or not rest.startswith(begin[0][0]):
        return None
    rest = rest.removeprefix(begin[0][0])
    if len(begin) > 1:  # a system turn
        text, mark, rest = rest.partition(begin[1][0])
        if not mark:
            return None
        turns.append({"role": "system", "content": text})
    role, mark = "user", answer
    while mark in rest:
        text, _, rest = rest.partition(mark)
        turns.append({"role": role, "content": text})
        role, mark = ("assistant", again) if role == "user" else ("user", answer)
    turns.append({"role": role, "content": rest})
    return turns if role == "user" else None


def _rendered(form: PromptFormat, tokenizer: Any, turns: Turns) -> str | None:
    """The text of the tokens of a chat; None for one that the template refuses, the system turn alone included."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", GliderWarning)  # a system turn that is left out
            return tokenizer.decode(form.chat_ids(tokenizer, turns))
    except (QueryError, TemplateError, GliderWarning):
        return None
