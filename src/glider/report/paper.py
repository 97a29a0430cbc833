"""The paper's tables and figures from the results of an evaluation, in every format at once."""

import os
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from glider.config import Config, faults
from glider.errors import ConfigError
from glider.files.disk import held_within, write_file, write_json
from glider.files.json_text import read_json
from glider.report.by_task import by_task, lacks
from glider.report.cells import Results
from glider.report.contents import Picture, Report
from glider.report.global_scores import PoolScores
from glider.report.rendering import FORMS, render
from glider.report.report_plan import FILE, ReportPlan
from glider.report.routing_map import RoutingMap
from glider.report.scores_figure import draw_scores
from glider.report.style import DARK, LIGHT, Palette
from glider.report.tables import chance_tasks, make_table
from glider.report.wording import FIGURES

_Read = TypeVar("_Read", bound=Config)


def write_report(
    directory: Path, out: Path, plan_file: Path | None = None, tick: Callable[[str], None] = lambda _: None
) -> Report:
    """Make every table and figure of a directory of results: `report.md`, `.tex`, `.html`, `.json` and the pictures.

    `plan_file` is by default `report.yaml` in the directory, where there is one. The same results make the same files.
    Raises `ExpertError` for a report within the results that is a link.
    """
    tick("reading results")
    results = Results.read(directory)
    file = plan_file or directory / FILE
    plan = ReportPlan.read(file) if plan_file or os.path.lexists(file) else ReportPlan()
    plan = plan.settled(results, file.parent)
    with held_within(directory, out.name) if out.parent == directory else held_within(out) as folder:
        pictures = _pictures(plan, file.parent, folder, tick)
        report = _report(plan, results, pictures, tick)
        for form in FORMS:
            text = render(report, form)
            write_file(folder / f"report.{form}", lambda temporary, text=text: temporary.write_text(text, "utf8"))
        write_json(folder / "report.json", as_json(report))
    return report


def _report(plan: ReportPlan, results: Results, pictures: list[Picture], tick: Callable[[str], None]) -> Report:
    """The tables, in the plan's order, with the pictures."""
    tick("tasks at chance")
    chance = chance_tasks(plan, results)
    tables = []
    for key in plan.tables:
        tick(key)
        tables.append(make_table(key, plan, results, chance))
    return Report(
        title=plan.title,
        intro=plan.intro,
        tables=tuple(tables),
        chance=dict(sorted(chance.items())),
        tasks=tuple(by_task(plan, results, chance)),
        lacks=tuple(lacks(plan, results)),
        pictures=tuple(pictures),
        provenance=_provenance(plan, results),
    )


def as_json(report: Report) -> dict[str, Any]:
    """Every number of the tables."""
    tables = [
        {
            **{name: getattr(table, name) for name in ("key", "title", "reference")},
            "columns": [asdict(column) for column in table.columns],
            "lines": [
                {"method": line.method.label, "cells": line.method.cells, "values": [asdict(v) for v in line.values]}
                for line in table.lines
            ],
        }
        for table in report.tables
    ]
    return {
        "title": report.title,
        "made_with": report.provenance,
        "chance": [{"place": place, "standing": standing} for place, standing in report.chance.items()],
        "tables": tables,
        "tasks": [asdict(one) for one in report.tasks],
        "lacks": [asdict(one) for one in report.lacks],
    }


def _pictures(plan: ReportPlan, root: Path, out: Path, tick: Callable[[str], None]) -> list[Picture]:
    assert plan.figures is not None
    pictures = []
    for kind, files in (("routing", plan.figures.routing), ("scores", plan.figures.scores)):
        for file in files:
            tick(f"picture of {file.name}")
            name = re.sub(r"[^\w.-]+", "-", file.stem)  # LaTeX and Markdown read some signs otherwise
            light, dark = out / f"{name}.png", out / f"{name}-dark.png"
            draw, source = _drawing(kind, root / file)
            draw(light, LIGHT)
            draw(dark, DARK)
            title, caption = FIGURES[kind]
            pictures.append(Picture(f"{title}: {source}", caption, light, dark))
    if len({path for picture in pictures for path in (picture.light, picture.dark)}) < 2 * len(pictures):
        raise ConfigError("figure files of different names", "one name twice", "Rename one of them.")
    return pictures


def _drawing(kind: str, path: Path) -> tuple[Callable[[Path, Palette], object], str]:
    """What draws a file of numbers, and where those come from."""
    if kind == "routing":
        routing = _read(RoutingMap, path)
        return routing.draw, f"the router {routing.router}"
    scores = _read(PoolScores, path)
    return partial(draw_scores, scores), f"the global signal {scores.signal}"


def _read(kind: type[_Read], path: Path) -> _Read:
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as fault:
        raise ConfigError(
            f"the JSON of `glider report` in {path}", faults(fault)[:200], "Make the file anew."
        ) from fault
    except (ValueError, RecursionError) as fault:
        raise ConfigError(f"the JSON of `glider report` in {path}", str(fault), "Make the file anew.") from fault


def _provenance(plan: ReportPlan, results: Results) -> dict[str, tuple[str, ...]]:
    routers = {router for table in plan.tables.values() for method in table.methods for router in method.cells}
    records = [cell.record for (router, _, _), cell in results.cells.items() if router in routers]
    values: dict[str, dict[str, None]] = {}
    for record in records:
        values.setdefault("base model", {})[f"{record['config']['base']} ({record['config']['dtype']})"] = None
        values.setdefault("pool", {})[record["hashes"]["pool"][:16]] = None
        for package, version in record["versions"].items():
            values.setdefault(package, {})[version] = None
    return {name: tuple(sorted(several)) for name, several in values.items()} | {"results": (str(len(records)),)}
