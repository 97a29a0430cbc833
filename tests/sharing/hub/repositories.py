"""Names and contents of what is shared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glider.errors import ExpertError, GliderError

Q = "model.layers.0.self_attn.q_proj"
REPO = "someone/thing"


def content(directory: Path) -> dict[str, bytes]:
    """Every file but hidden ones (a pool's lock) under its relative name."""
    files = [file for file in directory.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def refused(pull: Callable[[], Any], target: Path, *parts: str, error: type[GliderError] = ExpertError) -> None:
    """The pull raises `error` with these parts in its message, and there is nothing where it was to go."""
    with pytest.raises(error) as caught:
        pull()
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert list(target.parent.iterdir()) == []
