"""Rows of a task: read from files, and split."""

import json
import random
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from glider.config import faults
from glider.data.records import FORMS, from_cells, is_table, lines_of, parsed_line, parts_of, records
from glider.errors import DataError
from glider.files.opening import UnfitFile, sha256


class Row(BaseModel):
    """One example of a task. Fields of the file beyond these are ignored.

    `references` (or `targets`) are all the answers that count as right; with choices, the right ones among them.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    input: str = Field(min_length=1)
    output: str = Field(min_length=1)
    choices: tuple[str, ...] | None = None
    references: tuple[str, ...] | None = Field(None, validation_alias=AliasChoices("references", "targets"))
    definition: str | None = None
    split: str | None = None
    id: str | int | None = None
    template: str | None = None  # the prompt it was rendered with

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every answer that counts as right."""
        return self.references or (self.output,)


def read_rows(path: Path | str, split: str | None = None, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Read rows, those of one split only if given; a file that names no splits is all of it.

    JSON Lines, a JSON array, CSV, TSV (all also gzipped) or Parquet; with `input` and `output`, `prompt` and
    `completion` or `messages`, or the `columns` by part of a row. Raises `DataError` with the file and line number for
    a row that cannot be read, or lacks its input or output; and where a split is wanted of rows of which some name
    none.
    """
    path, columns, rows = Path(path), columns or {}, []
    try:
        if is_table(path):
            rows = [_row(from_cells(path, record, columns), columns, where) for where, record in records(path)]
            return _of_split(rows, split, path)
        for number, line in enumerate(lines_of(path), start=1):
            if line.strip():
                rows.append(_parse_row(line, columns, f"{path}:{number}"))
    except (OSError, UnfitFile, zlib.error, EOFError, UnicodeDecodeError) as fault:
        raise _unreadable(path, fault) from fault
    return _of_split(rows, split, path)


def read_pairs(path: Path | str) -> tuple[tuple[str, str], ...]:
    """Rows of a file as pairs of input and output: the examples that a query brings of its task."""
    return tuple((row.input, row.output) for row in read_rows(path))


def rows_digest(path: Path | str) -> str:
    """Hex digest of a file of rows; raises `DataError` as `read_rows` for what is no regular file."""
    try:
        return sha256(Path(path))
    except (OSError, UnfitFile) as fault:
        raise _unreadable(Path(path), fault) from fault


def _unreadable(path: Path, fault: Exception) -> DataError:
    if isinstance(fault, FileNotFoundError):
        return DataError(f"a file of rows at {path}", "no such file", "Check the path.")
    got = fault.strerror or str(fault) if isinstance(fault, OSError) else str(fault)
    return DataError(f"rows in {path}", got, "Give a text file, or one compressed by gzip.")


def _of_split(rows: list[Row], split: str | None, path: Path) -> list[Row]:
    named = bool(split) and _names_splits(rows, f"in {path}")
    selected = [row for row in rows if row.split == split] if named else rows
    if not selected:
        of_split = f" of split {split}" if split else ""
        others = ", ".join(dict.fromkeys(row.split for row in rows if row.split))[:100]
        got = f"none, but the splits {others}" if others else "none"
        raise DataError(f"at least one row{of_split} in {path}", got, "Add rows with `input` and `output`.")
    return selected


def _names_splits(rows: Sequence[Row], where: str) -> bool:
    """Whether rows have splits; raises `DataError` where some do and others do not, which would be left out."""
    without = sum(not row.split for row in rows)
    if 0 < without < len(rows):
        got = f"{without} of {len(rows)} rows without one"
        raise DataError(f"a `split` for every row {where}, or for none", got, "Name the split of each row.")
    return without == 0


def split_rows(rows: Sequence[Row], validation: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and validation rows: by the rows' own `split` (train, val) where they have one, else at random.

    At most `validation` rows validate, and never more than a tenth of the rows where the file names no split. Raises
    `DataError` where no row is left to train on, and where some rows name a split and others none.
    """
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    if _names_splits(rows, "to train on"):
        train = [row for row in shuffled if row.split == "train"]
        held_back = [row for row in shuffled if row.split in ("val", "validation", "dev")][:validation]
    else:
        count = min(validation, len(rows) // 10)
        train, held_back = shuffled[count:], shuffled[:count]
    if not train:
        raise DataError("rows to train on", "none (no row has the split `train`)", "Name the split, or leave it out.")
    return train, held_back


def _parse_row(line: str, columns: Mapping[str, str], where: str) -> Row:
    try:
        record = parsed_line(line)
    except (ValueError, RecursionError) as fault:
        got = str(fault) if isinstance(fault, UnfitFile) else f"no JSON ({fault})"
        raise DataError(f"a row with `input` and `output` at {where}", got, "Mend the row.") from fault
    if not isinstance(record, dict):
        got = f"{type(record).__name__}: Input should be an object"
        raise DataError(f"a row with `input` and `output` at {where}", got, "Mend the row.")
    return _row(record, columns, where)


def _row(record: dict[str, Any], columns: Mapping[str, str], where: str) -> Row:
    try:
        return Row.model_validate_json(json.dumps(parts_of(record, columns)))
    except ValidationError as fault:
        expected = f"a row with `input` and `output` at {where}"
        absent = any(error["type"] == "missing" for error in fault.errors())
        columns_there = f" (there are: {', '.join(map(str, record))[:200]})" if absent else ""
        raise DataError(expected, faults(fault) + columns_there, f"Mend the row. Rows have {FORMS}.") from fault
    except (ValueError, TypeError) as fault:
        raise DataError(f"a row at {where}", str(fault), f"Mend the row. Rows have {FORMS}.") from fault
