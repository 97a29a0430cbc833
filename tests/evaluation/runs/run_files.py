"""Tasks on disk, and what a run says of them."""

import json
from pathlib import Path
from typing import Any

from glider.evaluation.runs import Run

EVEN = [
    {"id": f"even-{i}", "input": f"is {i} even{'?' * i}", "output": ("yes", "no")[i % 2], "choices": ["yes", "no"]}
    for i in range(8)
]


SAY = [{"input": f"say {i}", "output": f"it is {i}", "references": [f"it is {i}", f"{i}"]} for i in range(3)]


def write(path: Path, rows: list[dict], **extra: Any) -> None:
    path.write_text("\n".join(json.dumps({"split": "test", **row, **extra}) for row in rows))


def statuses(run: Run) -> list[str]:
    return [result.status for result in run.go()]


def told(run: Run, router: str, where: str, task: str) -> dict:
    return json.loads(run.cells[router, where, task].path.read_text())
