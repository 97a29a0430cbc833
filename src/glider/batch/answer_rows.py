"""The lines of a file of answers, read as ones that somebody else may have written since."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from glider.config import faults
from glider.data.records import LONGEST_LINE, parsed_line
from glider.errors import ConfigError, MissingDependency, first_line
from glider.files.opening import UnfitFile, opened


class AnswerRow(BaseModel):
    """The answer to a row, or why there is none."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    row: int  # its place in the file of prompts, from 0
    text: str | None
    id: str | None = None
    finish_reason: str | None = None
    verdict: str | None = None
    expert: str | None = None
    alpha: float | None = None
    description: str | None = None
    fault: str | None = None


def are_answers(values: object, rows: Sequence[int]) -> bool:
    """Whether these are the answers to the rows at these places, in their order."""
    try:
        return isinstance(values, list) and [AnswerRow.model_validate(value).row for value in values] == list(rows)
    except ValidationError:
        return False


def unanswered(out: Path, count: int) -> int:
    """How many of the `count` rows of a file of answers have none.

    Raises `ConfigError` for a file that is cut short or holds anything else, and `OSError` where it cannot be read.
    """
    with _telling(out, count), opened(out) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        return _in_parquet(file, count) if out.suffix == ".parquet" else _in_lines(file, count)


def pyarrow_parquet() -> Any:
    """pyarrow's module of Parquet; raises `MissingDependency` without it."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingDependency("pyarrow", "write Parquet files", "pip install pyarrow") from None
    return pyarrow.parquet


@contextmanager
def _telling(out: Path, count: int) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError) as fault:
        got = faults(fault) if isinstance(fault, ValidationError) else str(fault)
        remedy = "Remove it, and give the same command again."
        raise ConfigError(f"the answers to {count} rows in {out}", got, remedy) from fault


def _in_lines(file: Any, count: int) -> int:
    number = missing = 0
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise UnfitFile(f"a line of more than {LONGEST_LINE} bytes")
        answer = AnswerRow.model_validate(parsed_line(line.decode("utf8")))
        if answer.row != number or number == count:
            raise UnfitFile(f"row {answer.row} in line {number + 1}")
        number, missing = number + 1, missing + (answer.text is None)
    if number < count:
        raise UnfitFile(f"{number} lines")
    return missing


def _in_parquet(file: Any, count: int) -> int:
    parquet = pyarrow_parquet()
    from pyarrow import ArrowException

    try:
        table = parquet.ParquetFile(file)
        if table.metadata.num_rows != count:
            raise UnfitFile(f"{table.metadata.num_rows} rows")
        if missing := {"row", "text"} - set(table.schema_arrow.names):
            raise UnfitFile(f"no column {min(missing)}")
        columns = table.read(columns=["row", "text"])
    except (ArrowException, OSError) as fault:  # a ValueError as well, or not
        raise UnfitFile(first_line(fault)) from fault
    if columns.column("row").to_pylist() != list(range(count)):
        raise UnfitFile("rows in another order")
    return columns.column("text").null_count
