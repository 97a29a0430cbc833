"""How much longer a tokenizer makes a text, by its settings, before it is given one.

A base's `tokenizer.json` may write ten thousand characters for one, and do so again and again: a prompt of one letter
is then more than any memory holds. What each step may make of a text is told by its settings: at most `times` its
length and so many characters more. How long a step's expressions take is not (`docs/security.md`).
"""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from glider.errors import BaseModelError
from glider.files.json_text import LARGEST_RESULT, MOST_OF_RESULT
from glider.files.opening import UnfitFile, read_bytes

MOST_TIMES = 1024  # T5's, whose table writes 18 characters for one of Arabic, is 72
MOST_MORE = 10_000  # characters or tokens
MOST_STEPS = 64
LONGEST_TOKEN = 2048  # characters; those of GPT-2 have 128 at most
LONGEST_WORD = 500  # characters that WordPiece looks up piece by piece, in the square of their number; BERT's are 100
_PARTS = ("normalizers", "pretokenizers", "processors", "decoders")


class Growth(NamedTuple):
    """A text of n characters becomes one of at most `times * n + more`."""

    times: float = 1
    more: float = 0

    def then(self, other: "Growth") -> "Growth":
        """Both, one after the other."""
        return Growth(other.times * self.times, other.times * self.more + other.more)


def require_bounded_files(source: str, **arguments: Any) -> None:
    """Raise `BaseModelError` for a `tokenizer.json` in a model's directory, or of a hub id, that makes texts longer
    without bound: it reads its own added tokens when it is opened. `arguments` say where on the hub."""
    for file in _files(source, **arguments):
        try:
            content = read_bytes(file, LARGEST_RESULT)
            count = sum(map(content.count, (b",", b"[", b"{")))
            if count > MOST_OF_RESULT:  # all that `parse_json` looks for would take seconds for a large vocabulary
                raise UnfitFile(f"{count} members, where {MOST_OF_RESULT} are the most")
            settings = json.loads(content)
        except (ValueError, RecursionError, OSError) as fault:
            got = " ".join(str(fault).split())[:300]
            raise BaseModelError(f"a readable {file}", got, "Write the base anew: save_pretrained().") from fault
        _require_bounded(settings, str(file))


def _files(source: str, **arguments: Any) -> list[Path]:
    if (directory := Path(source, arguments.get("subfolder") or "")).is_dir():
        files = directory.glob("tokenizer*.json")
        return sorted(file for file in files if file.name != "tokenizer_config.json" and file.is_file())
    from transformers.utils.hub import cached_file

    reasons = ("gated_repo", "missing_entries", "connection_errors")  # which the tokenizer's own opening tells
    silent: Any = {f"_raise_exceptions_for_{reason}": False for reason in reasons}
    file = cached_file(source, "tokenizer.json", **{**arguments, "force_download": False}, **silent)
    return [] if file is None else [Path(file)]


def require_bounded_tokenizer(tokenizer: Any) -> None:
    """The same of a tokenizer that is open, whatever files it was made of; one without such settings passes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    settings = {}
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part: Any = getattr(backend, name, None)
        if part is not None and isinstance(state := part.__getstate__(), bytes):
            settings[name] = json.loads(state)
    _require_bounded(settings, "an open tokenizer")


def _require_bounded(settings: Any, place: str) -> None:
    if not isinstance(settings, dict):
        return  # whoever opens it says so
    expected = f"settings in {place} that make texts little longer"
    remedy = "Give the model's own tokenizer."
    try:
        steps = {name: list(_steps(settings.get(name))) for name in ("normalizer", "pre_tokenizer", "post_processor")}
        text, answer = [step for part in steps.values() for step in part], list(_steps(settings.get("decoder")))
        for kind, several in (("prompts", text), ("answers", answer)):
            if len(several) > MOST_STEPS:
                raise BaseModelError(
                    expected, f"{len(several)} steps for {kind}, where {MOST_STEPS} are the most", remedy
                )
            growth = _composed(map(_growth, several))
            if growth.times > MOST_TIMES or growth.more > MOST_MORE:
                got = f"{kind} of up to {growth.times:.0f} times their length and {growth.more:.0f} more"
                raise BaseModelError(expected, got, remedy)
        _require_short(settings, expected, remedy)
    except (TypeError, ValueError, AttributeError, OverflowError) as fault:
        raise BaseModelError(f"a tokenizer's settings in {place}", str(fault)[:200], remedy) from fault


def _steps(part: Any) -> Iterable[dict[str, Any]]:
    """The steps of a part, those of its sequences one by one."""
    if part is None:
        return
    for name in _PARTS:
        if part.get("type") == "Sequence" and name in part:
            for one in part[name]:
                yield from _steps(one)
            return
    yield part


def _composed(growths: Iterable[Growth]) -> Growth:
    whole = Growth()
    for growth in growths:
        whole = whole.then(growth)
    return whole


def _growth(step: dict[str, Any]) -> Growth:
    """What one step may make of a text; NFKC and the like are bounded, and change nothing when they are repeated."""
    match step.get("type"):
        case "Replace":
            return _replacement(step)
        case "Prepend":
            return Growth(1, len(step["prepend"]))
        case "ByteLevel":
            return Growth(4, 1)  # a character for each byte
        case "Metaspace":
            return Growth(2, 1)  # before each word
        case "Precompiled":
            return Growth(max(1, _longest_entry(step["precompiled_charsmap"])))
        case "TemplateProcessing":
            return _template(step)
        case _:
            return Growth()


def _replacement(step: dict[str, Any]) -> Growth:
    """Of a pattern's length the text is known; an expression may match one character, or none between any two."""
    pattern, length = step["pattern"], len(step["content"])
    if isinstance(pattern, dict) and pattern.get("String"):
        return Growth(max(1, length / len(pattern["String"])))
    return Growth(1 + length, length)


def _longest_entry(table: str | list[int]) -> int:
    """Characters of the longest text that a table of SentencePiece writes for another."""
    content = base64.b64decode(table) if isinstance(table, str) else bytes(table)
    entries = content[4 + int.from_bytes(content[:4], "little") :]
    return max((len(entry.decode("utf8", "replace")) for entry in entries.split(b"\0")), default=1)


def _template(step: dict[str, Any]) -> Growth:
    """How often a template writes the text, and the tokens around it."""
    ids = {name: len(one["ids"]) for name, one in step.get("special_tokens", {}).items()}
    most = Growth()
    for pieces in (step["single"], step["pair"]):
        names = [piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece]
        times = sum("Sequence" in piece for piece in pieces)
        most = Growth(max(most.times, times), max(most.more, sum(ids.get(name, 1) for name in names)))
    return most


def _require_short(settings: dict[str, Any], expected: str, remedy: str) -> None:
    """Raise `BaseModelError` for tokens, or the marks of their beginnings, that are texts of their own."""
    model = settings.get("model") or {}
    vocabulary = model.get("vocab") or ()
    names = vocabulary if isinstance(vocabulary, dict) else [one[0] for one in vocabulary]
    added = [one["content"] for one in settings.get("added_tokens") or ()]
    marks = [model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token")]
    longest = max((len(name) for several in (names, added, marks) for name in several), default=0)
    if longest > LONGEST_TOKEN:
        raise BaseModelError(expected, f"a token of {longest} characters, where {LONGEST_TOKEN} are the most", remedy)
    word = model.get("max_input_chars_per_word") or 0
    if word > LONGEST_WORD:
        got = f"max_input_chars_per_word of {word:.0f}, where {LONGEST_WORD} are the most"
        raise BaseModelError(expected, got, remedy)
