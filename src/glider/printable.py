"""A stranger's text on its way out: to a terminal, into an error, a warning, a card, a page or a log.

Whatever a file, a hub or an endpoint says may hold escape sequences, control characters, marks that turn the writing
direction, and half characters that no encoding takes. None of it leaves this module. Imports nothing but the standard
library, since errors stand on it.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus

LONGEST = 200  # characters, where the caller names no other bound
STRUCK = "[secret]"
_SHORTEST_SECRET = 4  # characters; a shorter one would strike ordinary words
# ST is ESC \ or its one-character form; of a sequence that does not end the beginning goes, and nothing after a space
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[!-/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f\n]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[!-/]?[0-~]"
)
_BREAKS = re.compile("\r\n|[\r\x85\u2028\u2029]")


def printable(text: str, longest: int = LONGEST) -> str:
    """A text on one line, of at most `longest` characters (and then dots), without anything that is not to be seen."""
    line = " ".join(visible(text[: 4 * longest + 16]).split())
    return line if len(line) <= longest and len(text) <= 4 * longest + 16 else f"{line[:longest]} ..."


def visible(text: str) -> str:
    """The text without escape sequences and invisible characters; line breaks stay, a tab is a space."""
    if text.isascii() and text.isprintable():
        return text
    text = _BREAKS.sub("\n", _ESCAPES.sub("", text)).replace("\t", " ")
    return "".join(letter for letter in text if letter == "\n" or _is_seen(letter))


def piece(text: str) -> str:
    """A part of an answer that is printed as it comes: as `visible`, but tabs stay.

    An escape sequence that is spread over several parts loses its first character, and with it its power.
    """
    return "\t".join(visible(part) for part in text.split("\t"))


def dump_json(value: Any, indent: int | None = 2) -> str:
    """JSON for a terminal: readable in any language, invisible characters as `\\uXXXX`."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(letter if letter == "\n" or _is_seen(letter) else _escaped(letter) for letter in text)


def struck(text: str, secrets: Iterable[str | None]) -> str:
    """The text without any of the secrets, in any of the forms that a reply echoes them in."""
    for secret in secrets:
        if secret is None or len(secret) < _SHORTEST_SECRET:
            continue
        forms = {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        for form in sorted(forms, key=len, reverse=True):
            text = re.sub(re.escape(form), STRUCK, text, flags=re.IGNORECASE)
    return text


@lru_cache(maxsize=4096)
def _is_seen(letter: str) -> bool:
    return unicodedata.category(letter)[0] != "C" and letter not in "\u2028\u2029"


def _escaped(letter: str) -> str:
    return json.dumps(letter)[1:-1] if letter != "\x7f" else "\\u007f"
