"""Makes terminal.svg of what `glider demo` printed: the prompts that are named by their numbers.

FORCE_COLOR=1 glider demo > demo.ansi
python docs/terminal_picture.py demo.ansi docs/terminal.svg 3 4 8 10
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

source, target, *numbers = sys.argv[1:]
head, *answers = re.split(r"\n(?=\x1b\[1m ?\d+  )", Path(source).read_text("utf8"))
shown = [answer.split("\n\n")[0].rstrip() for answer in answers if re.search(r"\d+", answer[4:])[0] in numbers]
console = Console(record=True, width=104, file=io.StringIO(), force_terminal=True, color_system="truecolor")
console.print(Text("$ glider demo", style="bold"))
for answer in shown:
    console.print()
    console.print(Text.from_ansi(answer), no_wrap=True, crop=True)
svg = console.export_svg(title="glider demo, four of its twelve prompts", font_aspect_ratio=0.61)
svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)  # no font is loaded from elsewhere
svg = svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
Path(target).write_text(re.sub(r"[ \t]+\n", "\n", svg), "utf8")
