"""A plan of a pool in a directory, with rows of its experts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from glider.contribute.build import PoolPlan, build_pool
from glider.experts.expert import EXPERT_FILES
from glider.jobs.base import Executor, JobTick
from glider.jobs.local import LocalExecutor

LOCKS = (".pool.lock", ".writer.lock")
TENSORS = ("adapter_config.json", "adapter_model.safetensors", "glider.safetensors")
QUICK = {"rank": 2, "steps": 3, "gate_steps": 2, "batch_size": 4, "validation": 4, "learning_rate": 0.02}


class Draft:
    """A directory with rows, an adapter and a plan that tests change."""

    def __init__(self, root: Path, base: Path):
        self.root, self.pool = root, root / "pool"
        self.plan: dict[str, Any] = {"base": str(base), "defaults": dict(QUICK), "experts": []}

    def rows(self, name: str, answer: str = "x", rows: int = 16) -> str:
        lines = [json.dumps({"input": f"say {i}", "output": answer}) + "\n" for i in range(rows)]
        (self.root / f"{name}.jsonl").write_text("".join(lines), "utf8")
        return f"{name}.jsonl"

    def write(self) -> Path:
        (self.root / "pool.yaml").write_text(yaml.safe_dump(self.plan), "utf8")
        return self.root / "pool.yaml"

    def build(self, executor: Executor = LocalExecutor(), report: JobTick = lambda *line: None) -> dict[str, str]:  # noqa: B008
        """Statuses by name; a failure says why."""
        plan = PoolPlan.read(self.write())
        results = build_pool(plan, self.root, self.pool, executor, report)
        return {result.job.name: f"{result.status} {result.message}".strip() for result in results}

    def bytes_of(self, name: str, files: Sequence[str] = TENSORS) -> dict[str, bytes]:
        return {file: (self.pool / name / file).read_bytes() for file in files}

    def state(self) -> dict[str, tuple[bytes, int]]:
        files = [file for file in self.pool.rglob("*") if file.is_file() and file.name in (*EXPERT_FILES, "pool.json")]
        return {str(file.relative_to(self.pool)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    def leftovers(self) -> list[str]:
        return [path.name for path in self.pool.iterdir() if path.name.startswith(".") and path.name not in LOCKS]
