"""Texts far beyond what a base reads, found before they are tokenized to their end: each token takes hundreds of bytes.

Texts are counted piece by piece, which may tell a few tokens more than of the whole; so bounds leave room.
"""

from typing import Any

from glider.experts.token_ids import token_ids

FEW_TOKENS = 20_000  # of a text, counted in some hundredths of a second
MOST_TOKENS = 1 << 20  # of a prompt, where the base has no context
_PIECE = 1 << 14  # characters


def most_tokens(context: int | None) -> int:
    """Tokens of a text beyond which no base of this context reads it."""
    return MOST_TOKENS if context is None else max(FEW_TOKENS, 2 * context)


def exceeds(tokenizer: Any, text: str, most: int) -> bool:
    """Whether a text is of more than about `most` tokens, counted until there are as many."""
    if len(text) <= most:
        return False
    count = 0
    for begin in range(0, len(text), _PIECE):
        count += len(token_ids(tokenizer, text[begin : begin + _PIECE], special=False))
        if count > most:
            return True
    return False


def end_of(tokenizer: Any, text: str, most: int) -> str:
    """The text, or where it is of more than about `most` tokens the end of it that has about as many."""
    if len(text) <= most:
        return text
    count, end = 0, len(text)
    while end > 0 and count <= most:
        begin = max(0, end - _PIECE)
        count += len(token_ids(tokenizer, text[begin:end], special=False))
        end = begin
    return text[end:]
