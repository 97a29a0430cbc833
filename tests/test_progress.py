"""Progress on stderr: bars on a terminal, plain lines or nothing elsewhere."""

import pytest

from glider import progress
from glider.progress import Bars, track


def test_a_bar_is_shown_only_on_a_terminal_and_only_for_long_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(track(range(3), 3, "Counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(track(range(3), 3, "Counting")) == [0, 1, 2]
    assert "Counting" not in capsys.readouterr().err
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    assert list(track(range(3), 3, "Counting")) == [0, 1, 2]
    captured = capsys.readouterr()
    assert "Counting" in captured.err and captured.out == ""


def test_elsewhere_lines_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars.update("one", 0.5, "half [bold]way[/bold]")
        bars.say("one is half done")
        bars.finish("one", "[done]")
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["one is half done", "one: [done]"] and captured.out == ""
