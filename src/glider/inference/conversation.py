"""Selects the text of a conversation from which its verdict and its global term are computed."""

import re
from collections.abc import Callable, Sequence

FOLLOW_UP = 4  # words; a letter of a script without spaces counts as one
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

Turn = tuple[str, str]
"""A role (`system`, `user`, `assistant`, ...) and its text."""


def question_text(turns: Sequence[Turn], fits: Callable[[str], bool] | None = None) -> str:
    """The text that decides which experts a conversation's next answer uses, without a word of the chat template.

    It is the user's last turn: a new subject is a new question, whatever came before. A follow-up of
    at most four words ("Why?", "Shorter, please.") is joined to the user's turn before it, so that it keeps its
    subject. The assistant's turns never count. A system prompt counts where it names the task: if the turn alone does
    not fit (`fits`, the pool's verdict on a text) but does after the system prompt, both are used.

    Arguments:
        turns: The conversation, oldest first.
        fits: Whether the pool knows the task of a text; without it the system prompt is left out.

    Returns: the text; empty where no user said anything.
    """
    users = [text.strip() for role, text in turns if role == "user" and text.strip()]
    if not users:
        return ""
    start = len(users) - 1
    while start and len(_WORD.findall(users[start])) <= FOLLOW_UP:
        start -= 1
    text = "\n".join(users[start:])
    system = "\n".join(text.strip() for role, text in turns if role == "system" and text.strip())
    if fits is None or not system or fits(text):
        return text
    together = f"{system}\n\n{text}"
    return together if fits(together) else text
