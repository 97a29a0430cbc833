"""Records of a task in the forms that people keep them in, and what of them is a row's input and output."""

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glider.errors import DataError, MissingDependency

LARGEST_FILE = 1 << 30  # bytes of a JSON array, which is read at once
_PARTS = ("input", "output", "choices", "references", "targets", "definition", "split", "id", "template")
FORMS = "`input` and `output`, `prompt` and `completion`, or `messages`; --map names other columns"


def columns_of(text: str | None) -> dict[str, str]:
    """The columns that `input=question,output=answer` names, by part of a row; raises `DataError` for another form."""
    columns: dict[str, str] = {}
    for pair in filter(None, map(str.strip, (text or "").split(","))):
        part, equals, column = (piece.strip() for piece in pair.partition("="))
        if not equals or not column or part not in _PARTS or part in columns:
            raise DataError("columns such as input=question,output=answer", repr(pair), f"Parts: {', '.join(_PARTS)}.")
        columns[part] = column
    return columns


def is_table(path: Path) -> bool:
    """Whether a file is none of JSON Lines: CSV, TSV, Parquet, or a JSON array."""
    kind = _kind(path)
    return path.is_file() and (kind in (".csv", ".tsv", ".parquet") or (kind == ".json" and _begins_array(path)))


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of such a file, each with the place where it stands; raises `DataError` and `OSError`."""
    kind = _kind(path)
    if kind == ".parquet":
        yield from _parquet(path)
    elif kind == ".json":
        yield from _array(path)
    else:
        with _text(path) as file:
            try:
                for record in csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",", strict=True):
                    where = f"{path}:{file.lines}"
                    if None in record or None in record.values():
                        raise DataError(f"as many cells as columns at {where}", "another number", "Mend the row.")
                    yield where, {name: _cell(value) for name, value in record.items() if value != ""}
            except csv.Error as fault:
                raise DataError(f"CSV in {path}", str(fault), "Mend the file.") from fault


def as_row(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The parts of a row in a record; raises `ValueError` that says what does not fit."""
    if columns:
        if missing := [column for column in columns.values() if column not in record]:
            raise ValueError(f"no column {', '.join(missing)}, but {', '.join(map(str, record))}"[:200])
        return {**record, **{part: record[column] for part, column in columns.items()}}
    if "input" in record or "output" in record:
        return dict(record)
    if "prompt" in record and "completion" in record:
        turns = [*_turns(record["prompt"], "user"), *_turns(record["completion"], "assistant")]
    elif "messages" in record:
        turns = _turns(record["messages"], "user")
    else:
        return dict(record)
    return {**record, **_question_and_answer(turns)}


def _question_and_answer(turns: list[tuple[str, str]]) -> dict[str, str]:
    """One question and its answer; what the system says stands before the question."""
    roles = [role for role, _ in turns]
    if roles[-2:] != ["user", "assistant"] or set(roles[:-2]) - {"system"}:
        raise ValueError(f"turns of {', '.join(roles)[:80]}, where one question and its answer are a row")
    return {"input": "\n\n".join(text for _, text in turns[:-1]), "output": turns[-1][1]}


def _turns(value: Any, role: str) -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [(role, value)]
    if not isinstance(value, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    ):
        raise ValueError("turns that are not {'role': ..., 'content': ...}")
    return [(turn["role"], turn["content"]) for turn in value]


def _cell(text: str) -> Any:
    """A cell; lists of choices and references are written in JSON."""
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


class _Lines:
    """Lines of a text file, counted."""

    def __init__(self, file: Any):
        self._file, self.lines = file, 0

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.lines += 1
        return line


def _text(path: Path) -> _Lines:
    opened = gzip.open if path.suffix == ".gz" else open
    return _Lines(opened(path, "rt", encoding="utf-8-sig", newline=""))


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _begins_array(path: Path) -> bool:
    try:
        with _text(path) as file:
            return next((line.lstrip()[:1] for line in file if line.strip()), "") == "["
    except (OSError, UnicodeDecodeError, EOFError):
        return False  # whoever reads it says what is wrong


def _array(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.stat().st_size > LARGEST_FILE:
        raise DataError(f"a JSON array of at most {LARGEST_FILE} bytes in {path}", "more", "Write JSON Lines.")
    try:
        with _text(path) as file:
            values = json.loads("".join(file))
    except (ValueError, RecursionError) as fault:
        raise DataError(f"JSON in {path}", str(fault), "Mend the file.") from fault
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise DataError(f"an object as item {number} of {path}", type(value).__name__, "Mend the file.")
        yield f"{path}, item {number}", value


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingDependency("pyarrow", "read Parquet files", "pip install pyarrow") from None
    try:
        number = 0
        for batch in ParquetFile(path).iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", {name: one for name, one in value.items() if one is not None}
    except ArrowException as fault:
        raise DataError(f"Parquet in {path}", str(fault).splitlines()[0], "Get the file anew.") from fault
