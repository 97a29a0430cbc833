"""Which experts the sites use on each task: the numbers of GLIDER's figure 2, kept as a small JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import model_validator

from glider.config import Config
from glider.errors import ConfigError, RouterError
from glider.files.disk import write_file
from glider.inference.model import RoutedModel
from glider.report.global_scores import TaskFile
from glider.report.heatmap import Panel, draw_panels
from glider.report.style import LIGHT, Palette

MOST_PANELS = 24
LARGEST_WEIGHT = 1e6


class RoutedTask(Config):
    """One task: the mean weight of each expert (in the map's order) at each site, over its prompts' tokens."""

    task: str
    group: str
    rows: int
    own: str | None  # the expert made for the task
    weights: tuple[tuple[float, ...], ...]


class RoutingMap(Config):
    """What a router did on several tasks."""

    format: Literal[1] = 1
    router: str
    experts: tuple[str, ...]
    sites: tuple[str, ...]
    tasks: tuple[RoutedTask, ...]

    @model_validator(mode="after")
    def _fits(self) -> "RoutingMap":
        if not self.tasks or not self.experts or not self.sites:
            raise ValueError("a task, an expert and a site at least")
        for task in self.tasks:
            if {len(line) for line in task.weights} != {len(self.experts)} or len(task.weights) != len(self.sites):
                raise ValueError(f"{task.task}: a weight of each expert at each site")
            if not all(abs(weight) <= LARGEST_WEIGHT for line in task.weights for weight in line):  # NaN is none
                raise ValueError(f"{task.task}: weights up to {LARGEST_WEIGHT:g}")
            if task.own not in (None, *self.experts):
                raise ValueError(f"{task.task}: its own expert among the experts")
        return self

    def write(self, path: Path) -> None:
        """Put it on disk, a line for each task."""
        head = json.dumps(self.model_dump(mode="json", exclude={"tasks"}), ensure_ascii=False)
        lines = ",\n".join(json.dumps(task.model_dump(mode="json"), ensure_ascii=False) for task in self.tasks)
        write_file(path, lambda partial: partial.write_text(f'{head[:-1]}, "tasks": [\n{lines}\n]}}\n', "utf8"))

    def draw(self, path: Path, colours: Palette = LIGHT) -> Path:
        """Draw a panel for each task."""
        if len(self.tasks) > MOST_PANELS:
            raise ConfigError(f"at most {MOST_PANELS} tasks in a picture", str(len(self.tasks)), "Choose fewer.")
        panels = [Panel(f"{task.task} ({task.group})", task.weights, task.own) for task in self.tasks]
        return draw_panels(panels, self.experts, self.sites, path, colours)


def routing_map(
    model: RoutedModel,
    router: str,
    files: Sequence[TaskFile],
    *,
    descriptions: Mapping[str, str] | None = None,
    split: str | None = "test",
    rows: int = 8,
    seed: int = 0,
    tick: Callable[[str], None] = lambda task: None,
) -> RoutingMap:
    """Route `rows` prompts of each file (drawn by the seed; too long ones keep their end), and keep the mean weights.

    Each prompt weighs the same. `router` is the name to tell. Raises `RouterError` for a router without experts.
    """
    if not model.experts:
        raise RouterError("a router that uses experts", router, "Choose glider, phatgoose or another method.")
    if not files:
        raise ConfigError("tasks to route", "none", "Give --data.")
    tasks, sites = [], ()
    for file in files:
        maps = []
        for query in file.queries(split, rows, seed, descriptions):
            _, trace = model.trace(query, truncate=True)
            maps.append(trace.heatmap())
            sites = tuple(trace.sites)
        weights = torch.stack(maps).mean(dim=0).double()  # (S, E)
        tasks.append(
            RoutedTask(
                task=file.name,
                group=file.group,
                rows=len(maps),
                own=file.name if file.name in model.experts else None,
                weights=tuple(tuple(round(weight, 3) for weight in site) for site in weights.tolist()),
            )
        )
        tick(file.name)
    return RoutingMap(router=router, experts=tuple(model.experts), sites=sites, tasks=tuple(tasks))
