"""Notes of what lies beside them, by which a later call tells whether it is still that."""

from pathlib import Path
from typing import Any

from glider.files.json_text import read_json


def noted(note: Path) -> Any:
    """What a note says; None where there is none, or one that is damaged: what it is of is then made anew."""
    try:
        return read_json(note)
    except (OSError, ValueError):
        return None
