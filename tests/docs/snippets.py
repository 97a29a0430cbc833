"""What stands in the fences of a page, and how its commands run."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from glider.cli.main import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def page(name: str) -> str:
    """A page of `docs`, or one at the root of the repository."""
    place = DOCS / name
    return (place if place.exists() else ROOT / name).read_text("utf8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, also those inside a list."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.S | re.M)


def lines(text: str) -> list[str]:
    """The lines of a text's `sh` blocks, without comments and empty ones."""
    every = "".join(blocks(text, "sh")).splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", one).strip() for one in every) if line]


def glide(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: object) -> str:
    """Run a line that begins with `glider` in this process, with options of the test; what it printed."""
    words = shlex.split(line)
    assert words[0] == "glider", line
    monkeypatch.setattr(sys, "argv", [*words, *map(str, more)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code in (0, None), f"{line}: {printed.err}{printed.out}"
    return printed.out
