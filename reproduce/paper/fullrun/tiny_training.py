"""Section 5.1 in the rehearsal: tiny bases, made-up rows of every source, two steps under the config's own settings."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from fullrun.plan import TaskSource
from fullrun.readers import HubRow
from fullrun.training_plan import CategorySource, FlanSource, Training
from fullrun.training_rows import CLONE, ZERO_SHOT
from glider.contribute.settings import TrainConfig

_FEW = {"rank": 2, "steps": 2, "gate_steps": 1, "batch_size": 4, "validation": 2, "validations": 1, "examples": 1}
_WORDS = ["red", "blue", "green", "stone", "river", "cloud", "dog", "bird", "house", "tree"]


def tiny_training(training: Training, downloads: Path) -> Training:
    """The training with the first task of each kind, on a tiny base of its family; writes what is downloaded."""
    from fullrun.tiny import smaller, write_base

    base = downloads / f"tiny-{training.shape}"
    tasks: dict[str, TaskSource | FlanSource | CategorySource] = {}
    kinds = set()
    for name, task in training.tasks.items():
        kind = (type(task), getattr(task, "submix", None), getattr(task, "train", "") is None)
        if kind not in kinds:
            kinds.add(kind)
            tasks[name] = smaller(task) if isinstance(task, TaskSource) else task
    with FileLock(downloads / "made-up.lock"):
        write_base(base, decoder=training.shape != "t5-xl")
        for task in tasks.values():
            if isinstance(task, CategorySource):
                _write_category(downloads / CLONE / "tasks", task.category)
    few = TrainConfig(**{**training.settings.content, **_FEW})
    return replace(training, base=str(base), tasks=tasks, settings=few, most=10)


def made_up_flan(submix: str) -> Iterator[Sequence[HubRow]]:
    """Rows of a submix in its documented fields, of every task that the configs name and of others."""
    from fullrun.plan import read_plan

    chance = random.Random(submix)
    plan = read_plan(["train/flan-t5xl"])
    tasks = (task for training in plan.trainings for task in training.tasks.values())
    names = [task.task for task in tasks if isinstance(task, FlanSource) and task.submix == submix]
    for kind in ("fs_opt", *ZERO_SHOT):
        for _ in range(8):
            yield [
                {
                    "inputs": _text(chance),
                    "targets": chance.choice(_WORDS),
                    "task_source": "Flan2021",
                    "task_name": name,
                    "template_type": kind,
                }
                for name in [*names, "another_task:1.0.0"]
            ]


def _write_category(folder: Path, category: str) -> None:
    """Two tasks in the form of natural-instructions, and one of another category."""
    chance = random.Random(category)
    folder.mkdir(parents=True, exist_ok=True)
    for number, named in enumerate((category, category, "Another Category")):
        task_file: dict[str, Any] = {
            "Contributors": ["nobody"],
            "Source": ["made up"],
            "Categories": [named],
            "Definition": ["Say which word comes next."],
            "Positive Examples": [],
            "Negative Examples": [],
            "Instances": [
                {"id": f"{i}", "input": _text(chance), "output": [chance.choice(_WORDS), "a stone"]} for i in range(9)
            ],
        }
        name = f"task{number:03}_{category.lower().replace(' ', '_')}.json"
        (folder / name).write_text(json.dumps(task_file), "utf8")


def _text(chance: random.Random) -> str:
    return " ".join(chance.choice(_WORDS) for _ in range(6)) + "."
