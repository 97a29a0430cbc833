"""A chat template that an expert's card brings: a stranger's program, if a small one.

Jinja's sandbox keeps it from the machine, and neither from running for ever nor from filling the memory. So it has a
deadline, looked at at each of its lines, and a bound on the texts that it makes (`template_sandbox`). Whatever it
raises is one error.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from glider.errors import QueryError
from glider.printable import printable

DEADLINE = 2.0  # seconds for one prompt; real templates take a thousandth
_COMPILED, _ENGINE = "<template>", "jinja2"  # what Jinja calls the file of a template that lies in none; its own files
_EXPECTED, _REMEDY = "a chat template that renders, in the experts' cards", "Take the expert out, or mend its card."


class _TooLong(BaseException):
    """Past all the `except Exception` on the way."""


@contextmanager
def bounded(template: str | None) -> Iterator[None]:
    """Render a card's template inside the block; `QueryError` for whatever goes wrong. None: the tokenizer's own."""
    if template is None:
        yield
        return
    until, before = time.monotonic() + DEADLINE, sys.gettrace()

    def look(frame: Any, event: str, _: Any) -> Any:
        place = frame.f_code.co_filename
        if time.monotonic() > until and (place == _COMPILED or _ENGINE in place):  # a filter's own loops too
            raise _TooLong
        return look if place == _COMPILED else None

    sys.settrace(look)
    try:
        if (fault := _fault(template)) is not None:
            raise QueryError(_EXPECTED, fault, _REMEDY)
        yield
    except QueryError:
        raise
    except _TooLong:
        raise QueryError(_EXPECTED, f"one that takes more than {DEADLINE:g} s", _REMEDY) from None
    except Exception as fault:
        raise QueryError(_EXPECTED, printable(f"{type(fault).__name__}: {fault}"), _REMEDY) from fault
    finally:
        sys.settrace(before)


def rendered(
    tokenizer: Any,
    template: str,
    turns: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """Turns by a card's template, with the names that transformers gives a template; inside a `bounded` block.

    Raises what the template raises.
    """
    from glider.experts.template_sandbox import TooLarge, budgeted, compiled

    offered = None if tools is None else list(tools)
    names = {"messages": [dict(turn) for turn in turns], "tools": offered, "documents": None}
    calls = json.dumps([offered, *(turn.get("tool_calls") for turn in turns)])
    pieces = []
    try:
        with budgeted([*turns, {"tools": calls}]) as budget:
            for piece in compiled(template).generate(
                **tokenizer.special_tokens_map, **names, add_generation_prompt=add_generation_prompt
            ):
                budget.spend(len(piece))
                pieces.append(piece)
    except TooLarge:
        raise QueryError(_EXPECTED, "one whose texts fill the memory", _REMEDY) from None
    return "".join(pieces)


@lru_cache(maxsize=64)
def _fault(template: str) -> str | None:
    """Why a template cannot be used whatever is asked; None for one that can be run."""
    from jinja2 import TemplateSyntaxError

    from glider.experts.template_sandbox import TooLarge, budgeted, compiled

    try:
        with budgeted(()):
            compiled(template)  # what is constant in it is computed here
    except (TemplateSyntaxError, RecursionError) as fault:
        return printable(f"one that does not parse: {fault}")
    except TooLarge:
        return "one whose texts fill the memory"
    return None
