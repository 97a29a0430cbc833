"""A chat template that an expert's card brings: a stranger's program, if a small one.

Jinja's sandbox keeps it from the machine, and not from running for ever. So it has a deadline, looked at at each of its
lines, and no products or powers, by which one line would fill the memory. Whatever it raises is one error.
"""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from glider.errors import QueryError
from glider.printable import printable

DEADLINE = 2.0  # seconds for one prompt; real templates take a thousandth
_COMPILED = "<template>"  # what Jinja calls the file of a template that lies in none
_GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")  # a tag of transformers' own


class _TooLong(BaseException):
    """Past all the `except Exception` on the way."""


@contextmanager
def bounded(template: str | None) -> Iterator[None]:
    """Render a card's template inside the block; `QueryError` for whatever goes wrong. None: the tokenizer's own."""
    if template is None:
        yield
        return
    expected, remedy = "a chat template that renders, in the experts' cards", "Take the expert out, or mend its card."
    if (fault := _fault(template)) is not None:
        raise QueryError(expected, fault, remedy)
    until, before = time.monotonic() + DEADLINE, sys.gettrace()

    def look(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != _COMPILED:
            return None
        if time.monotonic() > until:
            raise _TooLong
        return look

    sys.settrace(look)
    try:
        yield
    except QueryError:
        raise
    except _TooLong:
        raise QueryError(expected, f"one that takes more than {DEADLINE:g} s", remedy) from None
    except Exception as fault:
        raise QueryError(expected, printable(f"{type(fault).__name__}: {fault}"), remedy) from fault
    finally:
        sys.settrace(before)


@lru_cache(maxsize=64)
def _fault(template: str) -> str | None:
    """What a template has that a card's may not."""
    from jinja2 import Environment, TemplateSyntaxError, nodes

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", template))
    except (TemplateSyntaxError, RecursionError) as fault:
        return printable(f"one that does not parse: {fault}")
    if next(tree.find_all((nodes.Mul, nodes.Pow)), None) is not None:
        return "one with a product or a power, which no chat needs"
    return None
