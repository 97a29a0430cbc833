"""The reference of files has a line for each format that glider numbers, with its number."""

import re

from .snippets import ROOT, page

LINES = {
    "batch/run.py": "`ANSWERS.run.json`",
    "evaluation/run_plan.py": "`RESULTS/ROUTER/SET/TASK.json`",
    "experts/card.py": "`POOL/EXPERT/card.json`",
    "experts/gains.py": "`POOL/gains.json`",
    "experts/index.py": "`POOL/pool.json`",
    "report/global_scores.py": "the `.json` of `glider report scores`",
    "report/routing_map.py": "the `.json` of `glider report scores`, `glider report routing`",
    "routing/spectra_files.py": "`$GLIDER_CACHE/instructions.sqlite3`, `spectra/`",
}


def test_every_numbered_format_has_its_line() -> None:
    text, source = page("reference/files.md"), ROOT / "src" / "glider"
    numbers = {}
    for file in source.rglob("*.py"):
        for stated in re.findall(
            r"^ *(?:FORMAT =|format: Literal\[1\] =|format: Literal\[1,) (\d)", file.read_text(), re.M
        ):
            numbers[str(file.relative_to(source))] = stated
    assert set(numbers) == set(LINES)
    for name, number in numbers.items():
        [line] = [line for line in text.splitlines() if line.startswith(f"| {LINES[name]}")]
        assert f"| {number} " in line or "in the file" in line, (name, line)
