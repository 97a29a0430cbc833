"""Texts as the numbers of their tokens, where a tokenizer's settings may be a stranger's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glider.errors import QueryError, first_line


class TokenizerFault(RuntimeError):
    """What the tokenizers library raises about its settings."""


def token_ids(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """The tokens of a text, with the special ones around it or without; `QueryError` where the tokenizer has none."""
    try:
        with tokenizer_faults():
            return tokenizer(text, add_special_tokens=special)["input_ids"]
    except TokenizerFault as fault:
        remedy = "Leave that text out, or give the model's own tokenizer."
        raise QueryError("a text that the base's tokenizer takes", str(fault)[:300], remedy) from fault


@contextmanager
def tokenizer_faults() -> Iterator[None]:
    """Raise `TokenizerFault` for the library's errors, which have no class of their own, and for its panics, which are
    no `Exception`: settings that contradict each other are found by the first text that meets them."""
    try:
        yield
    except BaseException as fault:
        if type(fault) is Exception or type(fault).__module__ == "pyo3_runtime":
            raise TokenizerFault(first_line(fault)) from fault
        raise
