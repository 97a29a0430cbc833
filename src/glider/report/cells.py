"""The results of an evaluation as they lie on disk: one JSON for each router and task."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from glider.errors import DataError
from glider.evaluation.records import require_cell
from glider.evaluation.run_plan import FORMAT
from glider.files.json_text import LARGEST_RESULT, MOST_OF_RESULT, read_json

Place = tuple[str, str]  # set and task of the run
_PARTS = {"format", "key", "router", "set", "task", "config", "hashes"}
_SURE = 3  # parts by which a cell is known that lacks others


@dataclass(frozen=True)
class CellFile:
    """One finished or failed cell."""

    path: Path
    record: dict[str, Any]

    @property
    def fault(self) -> str | None:
        """Why there is no score."""
        return self.record["fault"]["message"] if "fault" in self.record else None

    @property
    def rows(self) -> dict[int, float]:
        """Each row's score by its place in the split."""
        return {row["place"]: float(row["score"]) for row in self.record["results"]}

    @property
    def source(self) -> tuple[str, str]:
        """What tells whether the rows of two cells are the same: the file's hash and the split."""
        return self.record["hashes"]["data"], str(self.record["config"]["task"]["split"])

    @property
    def guess(self) -> float | None:
        """What guessing gives on the split; None for open answers."""
        return self.record["guess"]


@dataclass(frozen=True)
class TaskResult:
    """One method on one task, averaged over its runs (seeds)."""

    rows: dict[int, float]
    runs: tuple[float, ...]  # mean of each run
    guess: float | None
    sources: frozenset[tuple[str, str]]

    @property
    def score(self) -> float:
        """Mean over the rows."""
        return sum(self.rows.values()) / len(self.rows)


@dataclass(frozen=True)
class Results:
    """Every cell of a directory."""

    cells: dict[tuple[str, str, str], CellFile]  # by router, set, task

    @classmethod
    def read(cls, directory: Path) -> "Results":
        """All cells below a directory; other JSON is none of ours.

        Raises `DataError` without any, for a file that is no JSON, or holds nothing or a part of a cell (a broken cell
        must not pass for none: the mean of the others is another number), a cell of another format or an earlier
        version, or without what `require_cell` requires, and two cells of one router and task that differ in what
        decides the result, or in their scores.
        """
        cells: dict[tuple[str, str, str], CellFile] = {}
        for path in sorted(directory.rglob("*.json")):
            parts = path.relative_to(directory).parts
            if any(part.startswith(".") for part in parts):
                continue  # unfinished, of a process that was killed
            if (record := _record(path, in_place=len(parts) >= len(("ROUTER", "SET", "TASK.json")))) is None:
                continue
            if lacking := sorted(_PARTS - record.keys()):
                raise _broken(path, f"no {', '.join(lacking)}")
            if record["format"] != FORMAT:
                raise DataError(f"results of format {FORMAT}", f"{record['format']} in {path}", "Evaluate anew.")
            if "guess" not in record and "fault" not in record:
                raise DataError(
                    f"what guessing gives in {path}",
                    "a result of an earlier version",
                    "Give `glider evaluate` the same command again.",
                )
            try:
                require_cell(record)
            except ValueError as fault:
                raise _broken(path, str(fault)) from fault
            cell = CellFile(path, record)
            name = _name(cell)
            if name in cells and cells[name].record["key"] != record["key"]:
                two = f"{cells[name].path} and {path}"
                raise DataError(f"one result of {' / '.join(name)}", two, "Give the routers of the runs other names.")
            cells[name] = _one_of(cells[name], cell) if name in cells else cell
        if not cells:
            raise DataError(f"results of `glider evaluate` in {directory}", "none", "Give the directory of its --out.")
        return cls(cells)

    @cached_property
    def routers(self) -> list[str]:
        """Names of the routers, `base` first."""
        return sorted(dict.fromkeys(router for router, _, _ in self.cells), key=lambda name: (name != "base", name))

    @cached_property
    def sets(self) -> dict[str, list[str]]:
        """The tasks of each set of the runs."""
        sets: dict[str, dict[str, None]] = {}
        for _, where, task in sorted(self.cells, key=lambda name: name[1:]):
            sets.setdefault(where, {})[task] = None
        return {where: list(tasks) for where, tasks in sets.items()}

    def of(self, routers: Sequence[str], place: Place) -> TaskResult | None:
        """The mean of several runs on a task; None unless each of them has a score."""
        cells = [self.cells.get((router, *place)) for router in routers]
        scored = [cell for cell in cells if cell is not None and cell.fault is None]
        if not cells or len(scored) < len(cells):
            return None
        scores: dict[int, list[float]] = {}
        for cell in scored:
            for row, score in cell.rows.items():
                scores.setdefault(row, []).append(score)
        return TaskResult(
            rows={row: sum(several) / len(several) for row, several in sorted(scores.items())},
            runs=tuple(sum(cell.rows.values()) / len(cell.rows) for cell in scored),
            guess=scored[0].guess,
            sources=frozenset(cell.source for cell in scored),
        )

    def lack(self, routers: Sequence[str], place: Place) -> str:
        """Why `of` found nothing."""
        for router in routers:
            cell = self.cells.get((router, *place))
            if cell is None:
                return f"{router} has not been run"
            if cell.fault is not None:
                return f"{router} failed: {cell.fault}"
        return "no router"


def _one_of(first: CellFile, second: CellFile) -> CellFile:
    """Of two files of one result that which has scores; raises `DataError` where they have others."""
    if first.fault is None and second.fault is None and first.rows != second.rows:
        two = f"other scores in {first.path} than in {second.path}"
        raise DataError(f"one result of {' / '.join(_name(first))}", two, "Move one of them away.")
    return second if first.fault is not None else first


def _name(cell: CellFile) -> tuple[str, str, str]:
    return cell.record["router"], cell.record["set"], cell.record["task"]


def _record(path: Path, *, in_place: bool) -> dict[str, Any] | None:
    """The content of a cell, or of what is left of one; None for what is none. `in_place`: where only cells lie."""
    if path.is_dir() and any(path.rglob("*.json")):  # of a router or a set of such a name
        return None
    try:
        record = read_json(path, LARGEST_RESULT, MOST_OF_RESULT)
    except (OSError, ValueError) as fault:
        raise DataError(f"JSON in {path}", str(fault), "Evaluate that cell anew, or move the file away.") from fault
    if in_place and (not record or not isinstance(record, dict | list)):
        raise _broken(path, "nothing" if not record else f"{type(record).__name__} alone")
    return record if isinstance(record, dict) and len(record.keys() & _PARTS) >= _SURE else None


def _broken(path: Path, got: str) -> DataError:
    return DataError(f"a result in {path}", got, "Evaluate that cell anew, or move it away.")
