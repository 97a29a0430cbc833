"""Makes terminal.svg of what `glider demo` printed: the prompts that are named by their numbers, one after the other.

FORCE_COLOR=1 glider demo > demo.ansi
python docs/terminal_picture.py demo.ansi docs/terminal.svg 3 4 8 10

The picture plays in ten seconds, whatever the run took, and begins anew; who asks for less motion sees its end.
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

SECONDS = 10

source, target, *numbers = sys.argv[1:]
head, *answers = re.split(r"\n(?=\x1b\[1m ?\d+  )", Path(source).read_text("utf8"))
shown = [answer.split("\n\n")[0].rstrip() for answer in answers if re.search(r"\d+", answer[4:])[0] in numbers]
console = Console(record=True, width=104, file=io.StringIO(), force_terminal=True, color_system="truecolor")
console.print(Text("$ glider demo", style="bold"))
first, starts = 1, []  # the line that each answer begins at
for answer in shown:
    starts.append(first)
    first += 2 + answer.count("\n")
    console.print()
    console.print(Text.from_ansi(answer), no_wrap=True, crop=True)
svg = console.export_svg(title="glider demo, four of its twelve prompts", font_aspect_ratio=0.61)
svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)  # no font is loaded from elsewhere


def timed(match: re.Match[str]) -> str:
    """A piece of a line, with the number of the answer that it belongs to as a class."""
    part = sum(start <= int(match["line"]) for start in starts)
    return f'<text class="{match["style"]} answer-{part}"{match["rest"]}line-{match["line"]})'


svg = re.sub(r'<text class="(?P<style>[^"]*)"(?P<rest>[^>]*?)line-(?P<line>\d+)\)', timed, svg)
moves = []
for part in range(1, len(starts) + 1):
    until = 100 * part / (len(starts) + 2)
    moves.append(f"@keyframes answer-{part} {{ 0%, {until:.0f}% {{ opacity: 0 }} {until + 2:.0f}% {{ opacity: 1 }} }}")
    moves.append(f".answer-{part} {{ animation: answer-{part} {SECONDS}s linear infinite }}")
moves.append("@media (prefers-reduced-motion: reduce) { text { animation: none !important } }")
svg = svg.replace("</style>", "\n".join([*moves, "</style>"]), 1)
svg = svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
Path(target).write_text(re.sub(r"[ \t]+\n", "\n", svg), "utf8")
