"""What a report shows: `report.yaml` beside the results names task sets, methods and tables."""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from glider.config import Config, repeated
from glider.errors import ConfigError
from glider.files.yaml_text import faults_of_plan, read_yaml
from glider.report.cells import Place, Results

FILE = "report.yaml"

# title and sentence of the tables that the paper and its reviewers asked for
KNOWN = {
    "table1": (
        "Methods",
        "Each way of using the pool of experts, on tasks that have an expert of their own in the pool and on tasks "
        "that have none.",
    ),
    "table2": (
        "The weight of the global term (alpha)",
        "How much the judgement of the whole query counts beside the judgement of each token: a larger alpha trusts "
        "the expert that suits the query, a smaller one lets every token choose.",
    ),
    "table3": (
        "Experts kept for each token",
        "Top-k keeps the k best experts of each token; top-p keeps the best ones until their probabilities reach p.",
    ),
    "ablation_global": (
        "With and without the global term",
        "The same routers with the judgement of the whole query and without it.",
    ),
    "ablation_local": (
        "The global term over other local routers",
        "The judgement of the whole query, put on top of routers that choose by token in other ways.",
    ),
    "ablation_examples": (
        "Examples of the query's task",
        "How the result changes with the number of examples that describe the task of a query.",
    ),
    "ablation_level": (
        "Routing by token and by query",
        "Whether each token chooses its own experts, or the whole query is given to the same ones.",
    ),
    "ablation_incremental": (
        "Growing the pool",
        "The same router while experts join the pool one after another, with no training in between.",
    ),
}


class SetView(Config):
    """A column: tasks of one or more sets of the runs."""

    title: str = ""
    note: str = ""
    of: tuple[str, ...] = ()  # sets of the runs; default: the one of the column's name
    tasks: tuple[str, ...] = ()  # default: all that any method was evaluated on

    @model_validator(mode="before")
    @classmethod
    def _of_list(cls, value: Any) -> Any:
        return {"tasks": value} if isinstance(value, list) else {} if value is None else value


class MethodView(Config):
    """A row: a router's name in the run, or several that are runs of one method (seeds) and are averaged."""

    cells: tuple[str, ...] = Field(min_length=1)
    name: str = ""
    note: str = ""
    bound: bool = False  # knows more than the others may: never marked as the best
    sets: tuple[str, ...] = ()  # the columns it can be in, as one that needs an expert of the task; default: all

    @model_validator(mode="before")
    @classmethod
    def _of_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"cells": (value,)}
        if isinstance(value, dict) and isinstance(value.get("cells"), str):
            return {**value, "cells": (value["cells"],)}
        return value

    @property
    def label(self) -> str:
        """The name in tables."""
        return self.name or self.cells[0]

    def has(self, name: str) -> bool:
        """Whether a number of this method is to be had on a set."""
        return not self.sets or name in self.sets


class TableView(Config):
    """A table: methods as rows, sets as columns."""

    methods: tuple[MethodView, ...] = Field(min_length=1)
    title: str = ""
    note: str = ""
    reference: str | None = None  # the method that the others are tested against; default: the report's
    sets: tuple[str, ...] = ()  # default: all

    @model_validator(mode="before")
    @classmethod
    def _of_list(cls, value: Any) -> Any:
        return {"methods": value} if isinstance(value, list) else value


class Figures(Config):
    """JSON files of `glider report routing` and `glider report scores`, relative to the report file."""

    routing: tuple[Path, ...] = ()
    scores: tuple[Path, ...] = ()


class ReportPlan(Config):
    """The report file."""

    title: str = "Routing among experts: results"
    intro: str = ""
    reference: str | None = None
    sets: dict[str, SetView] = {}  # default: the sets of the runs
    tables: dict[str, TableView] = {}  # default: one with every router
    figures: Figures | None = None  # default: routing.json and scores.json, where they are

    @classmethod
    def read(cls, path: Path) -> "ReportPlan":
        """Read a report file; raises `ConfigError` naming every fault of its form."""
        with faults_of_plan("a report file", "a report", "docs/evaluation.md", path):
            plan = read_yaml(path)
            return cls.model_validate({} if plan is None else plan)

    def settled(self, results: Results, directory: Path) -> "ReportPlan":
        """With the defaults in place, checked against the results; names that fit nothing are told together."""
        sets = self.sets or {name: SetView() for name in results.sets}
        routers = [name for name in results.routers if not name.startswith("single:") or "{task}" in name]
        everything = TableView(methods=tuple(MethodView(cells=(name,)) for name in routers or results.routers))
        tables = self.tables or {"table1": everything}
        figures = self.figures or Figures(
            routing=tuple(path for path in [Path("routing.json")] if os.path.lexists(directory / path)),
            scores=tuple(path for path in [Path("scores.json")] if os.path.lexists(directory / path)),
        )
        plan = self.model_copy(update={"sets": sets, "tables": tables, "figures": figures})
        if faults := plan._faults(directory):
            raise ConfigError("a report whose names fit together", "; ".join(faults), f"Mend {FILE}.")
        return plan

    def places(self, name: str, results: Results) -> list[Place]:
        """The tasks of a column."""
        view = self.sets[name]
        places = [(where, task) for where in view.of or (name,) for task in results.sets.get(where, [])]
        if not view.tasks:
            return places
        by_task: dict[str, list[Place]] = {task: [] for task in view.tasks}
        for place in places:
            if place[1] in by_task:
                by_task[place[1]].append(place)
        first = (view.of or (name,))[0]
        return [place for task, several in by_task.items() for place in several or [(first, task)]]

    def _faults(self, directory: Path) -> list[str]:
        faults = []
        for key, table in self.tables.items():
            labels = [method.label for method in table.methods]
            faults += [f"{label} twice in {key}" for label in repeated(labels)]
            if table.reference is not None and table.reference not in labels:
                faults.append(f"the reference {table.reference} of {key}, none of its methods")
            names = dict.fromkeys([*table.sets, *(name for method in table.methods for name in method.sets)])
            faults += [
                f"the set {name} in {key}, none of {', '.join(self.sets)}" for name in names if name not in self.sets
            ]
        every = {method.label for table in self.tables.values() for method in table.methods}
        if self.reference is not None and self.reference not in every:
            faults.append(f"the reference {self.reference}, no method of any table")
        assert self.figures is not None
        files = [*self.figures.routing, *self.figures.scores]
        return faults + [f"no file {directory / file}" for file in files if not (directory / file).is_file()]
