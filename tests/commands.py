"""Commands of glider, run in the tests' own process."""

import sys
from typing import NamedTuple

import pytest

from glider.cli.main import main


class CommandResult(NamedTuple):
    """The exit code of a command, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str


def run_command(
    arguments: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
) -> CommandResult:
    """Run `glider ARGUMENTS`; every command ends by `SystemExit`."""
    monkeypatch.setattr(sys, "argv", ["glider", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capture.readouterr()
    return CommandResult(end.value.code if isinstance(end.value.code, int) else 0, out, err)
