"""The answers to a chunk of prompts on disk, until all are there: with a digest, since a damaged text is a text too."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glider.batch.answer_rows import are_answers
from glider.files.disk import canonical_json, write_json
from glider.files.json_text import LARGEST_RESULT, MOST_OF_RESULT, read_json


def write_chunk(file: Path, answers: list[dict[str, Any]]) -> None:
    """Store answers, whole."""
    write_json(file, {"sha256": _digest(answers), "answers": answers})


def read_chunk(file: Path, rows: Sequence[int]) -> list[dict[str, Any]] | None:
    """The answers to the rows at these places; None for a file that holds none, others, or damaged ones."""
    try:
        content = read_json(file, LARGEST_RESULT, MOST_OF_RESULT)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not are_answers(content.get("answers"), rows):
        return None
    return content["answers"] if content.get("sha256") == _digest(content["answers"]) else None


def _digest(answers: list[dict[str, Any]]) -> str:
    return hashlib.sha256(canonical_json(answers).encode()).hexdigest()
