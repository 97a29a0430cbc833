"""The terminal of the first page is what `glider demo` prints, one answer after the other, and loads nothing."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .snippets import DOCS

PICTURE = (DOCS / "terminal.svg").read_text("utf8")


def answers(picture: str) -> dict[int, str]:
    """The words of the picture by the number of the answer that they appear with."""
    told: dict[int, str] = {}
    for number, text in re.findall(r'<text class="[^"]* answer-(\d+)"[^>]*>([^<]*)</text>', picture):
        told[int(number)] = " ".join(f"{told.get(int(number), '')} {text}".replace("&#160;", " ").split())
    return told


def test_answers_come_one_after_the_other() -> None:
    told = answers(PICTURE)
    assert list(told) == [0, 1, 2, 3, 4] and told[0] == "$ glider demo"
    assert all(re.match(r"\d+ ", told[number]) for number in (1, 2, 3, 4))
    starts = [int(start) for start in re.findall(r"@keyframes answer-\d \{ 0%, (\d+)% \{ opacity: 0 \}", PICTURE)]
    assert len(starts) == 4 and starts == sorted(starts) and starts[-1] < 80
    assert set(re.findall(r"animation: answer-\d (\d+)s", PICTURE)) == {"10"}
    assert "prefers-reduced-motion" in PICTURE and "@font-face" not in PICTURE and "url(http" not in PICTURE


def test_a_picture_is_made_of_what_was_printed(tmp_path: Path) -> None:
    first = "\x1b[1m 1  sort\x1b[0m (its expert: one)\n    3 1\n    1 3"
    printed = f"2 experts\n\n{first}\n\n\x1b[1m 2  add\x1b[0m (none)\n    1+1\n    2\n\nend"
    (tmp_path / "demo.ansi").write_text(printed)
    command = [sys.executable, DOCS / "terminal_picture.py", tmp_path / "demo.ansi", tmp_path / "out.svg", "1", "2"]
    subprocess.run(command, check=True, capture_output=True)
    told = answers((tmp_path / "out.svg").read_text("utf8"))
    assert told == {0: "$ glider demo", 1: "1 sort (its expert: one) 3 1 1 3", 2: "2 add (none) 1+1 2"}


@pytest.mark.slow
def test_the_words_are_the_demos(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "glider", "demo", "--picture", tmp_path / "heatmap.png"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)

    def words(text: str) -> str:
        """Without scores, which may differ in the last place from machine to machine, and bars."""
        return " ".join(re.sub(r"-?\d+\.\d+|█", "", html.unescape(text).replace("\xa0", " ")).split())

    printed = words(ran.stdout)
    for number, piece in re.findall(r'<text class="[^"]* answer-(\d+)"[^>]*>([^<]*)</text>', PICTURE):
        assert number == "0" or words(piece) in printed, piece
