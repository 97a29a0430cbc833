"""Rows of each expert's task, from files that are named as the experts are."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from glider.errors import ConfigError, DataError

if TYPE_CHECKING:
    from glider.data.rows import Row

_MOST_FAULTS = 8  # that an error names, of files that cannot be used


def rows_of_tasks(data: str, names: Iterable[str], split: str | None) -> "dict[str, list[Row]]":
    """The rows of each expert's task; `data` is a path with `{name}` in it.

    Raises `ConfigError` for a path without, and `DataError` that names all experts whose rows cannot be read.
    """
    from glider.data.rows import read_rows

    if "{name}" not in data:
        raise ConfigError("a path with {name} in --data", data, "Write, for example, --data 'tasks/{name}.jsonl'.")
    rows: dict[str, list[Row]] = {}
    faults: dict[str, DataError] = {}
    for name in names:
        try:
            rows[name] = read_rows(data.replace("{name}", name), split)
        except DataError as fault:
            faults[name] = fault
    if len(faults) == 1:
        raise next(iter(faults.values()))
    if faults:
        lines = [f"{name}: {fault.got}" for name, fault in faults.items()]
        more = [f"and {len(lines) - _MOST_FAULTS} more"] if len(lines) > _MOST_FAULTS else []
        got = f"{len(lines)} experts without them ({'; '.join(lines[:_MOST_FAULTS] + more)})"
        raise DataError(f"rows of every expert's task in {data}", got, "Add their files.")
    return rows
