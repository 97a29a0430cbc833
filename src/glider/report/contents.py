"""What a report holds, before it takes the form of Markdown, LaTeX or a page."""

from dataclasses import dataclass
from pathlib import Path

from glider.report.by_task import ByTask, Lack
from glider.report.cells import Place
from glider.report.chance import Standing
from glider.report.tables import Table


@dataclass(frozen=True)
class Picture:
    """A figure in both dresses."""

    title: str
    caption: str
    light: Path
    dark: Path


@dataclass(frozen=True)
class Report:
    """Everything that the formats show."""

    title: str
    intro: str
    tables: tuple[Table, ...]
    chance: dict[Place, Standing]  # the tasks that no method is known to be above guessing on
    tasks: tuple[ByTask, ...]
    lacks: tuple[Lack, ...]
    pictures: tuple[Picture, ...]
    provenance: dict[str, tuple[str, ...]]  # base, pool, versions ...: the distinct values in the cells
