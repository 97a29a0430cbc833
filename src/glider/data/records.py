"""Records of a task in the forms that people keep them in, and what of them is a row's input and output."""

import csv
import gzip
import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glider.config import repeated
from glider.data.parquet_footer import values_of_columns
from glider.errors import DataError, MissingDependency, first_line
from glider.files.json_text import items_of, parse_json, require_small, unique_names
from glider.files.opening import UnfitFile, opened

LARGEST_FILE = 256 << 20  # bytes of a JSON array, which is read at once
LONGEST_LINE = 16 << 20  # bytes of a row
MOST_MEMBERS = 20_000_000  # values of a JSON array
_LARGEST_EXPANDED, _MOST_EXPANDED = 256 << 20, 100  # bytes, and times the compressed file's size where that is more
_LEAST_ROWS, _ROW_BYTES = 100_000, 4  # that any compressed file may hold, and of a larger one the bytes for each
_LEAST_LINES, _LINE_BYTES = 1_000_000, 1  # likewise of a JSON array, which may have a value on each
_MOST_EMPTY = 1_000_000  # lines, which take longer to read than what they say
_LONG_LINE, _MOST_OF_LINE = 1 << 16, 50_000  # characters, and then the most members
_PARQUET_ROWS = 64  # decoded at once
_MOST_COLUMNS = 1024  # of Parquet: to read one takes some 30 kB
_PLACE_BYTES = 8  # of an item of a list
_LISTS = ("choices", "references", "targets")
TURNS = ("messages", "prompt", "completion")
_PARTS = ("input", "output", *_LISTS, "definition", "split", "id", "template")
FORMS = (
    "`input` and `output` (an `instruction` beside them is put before the input), `prompt` and `completion`, "
    "or `messages`; --map names other columns"
)
_NO_TURNS = "turns that are not {'role': ..., 'content': ...} of text"


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
        yield from _delimited(path, "\t" if kind == ".tsv" else ",")


def parsed_line(line: str) -> Any:
    """What a line of JSON Lines says; raises `ValueError` and `RecursionError` for what is no such line."""
    if len(line) > _LONG_LINE:
        parse_json(line.encode(), _MOST_OF_LINE)  # what is built of millions of members is told before it is
    return json.loads(line, object_pairs_hook=unique_names)


def from_cells(
    path: Path, record: Mapping[str, Any], columns: Mapping[str, str], turns: Collection[str] = TURNS
) -> dict[str, Any]:
    """A record of CSV or TSV with its lists, and `turns` of chats, which are written in JSON there; one of another
    file as it is."""
    if _kind(path) not in (".csv", ".tsv"):
        return dict(record)
    kinds = {columns.get(part, part): str for part in _LISTS} | dict.fromkeys(turns, dict)
    return {**record, **{name: _listed(record[name], kind) for name, kind in kinds.items() if name in record}}


def parts_of(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The parts of a row in a record, without its other fields; raises `ValueError` that says what does not fit."""
    row = _as_row(record, columns)
    return {part: row[part] for part in _PARTS if part in row}


def _as_row(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    if columns:
        if missing := [column for column in columns.values() if column not in record]:
            raise ValueError(f"no column {', '.join(missing)}, but {', '.join(map(str, record))}"[:200])
        rest = {name: value for name, value in record.items() if name != "references" or "targets" not in columns}
        return {**rest, **{part: record[column] for part, column in columns.items()}}
    if "output" in record and (question := instructed(record)):
        return {**record, "input": question}
    if "input" in record or "output" in record:
        return dict(record)
    if "prompt" in record and "completion" in record:
        turns = [*_turns(record["prompt"], "user"), *_turns(record["completion"], "assistant")]
    elif "messages" in record:
        turns = _turns(record["messages"], "user")
    else:
        return dict(record)
    return {**record, **_question_and_answer(turns)}


def instructed(record: Mapping[str, Any]) -> str | None:
    """A record's instruction before its input, as Alpaca has them (its inputs are often empty); None without one."""
    instruction, text = record.get("instruction"), record.get("input") or ""
    for name, value in (("instruction", instruction or ""), ("input beside an instruction", text)):
        if instruction and not isinstance(value, str):
            raise ValueError(f"an {name} of type {type(value).__name__}")
    return "\n\n".join(filter(None, (instruction, text))) if instruction and instruction.strip() else None


def _question_and_answer(turns: list[tuple[str, str]]) -> dict[str, str]:
    """One question and its answer; what the system says stands before the question."""
    roles = [role for role, _ in turns]
    if roles[-2:] != ["user", "assistant"] or set(roles[:-2]) - {"system"}:
        raise ValueError(f"turns of {', '.join(roles)[:80]}, where one question and its answer are a row")
    return {"input": "\n\n".join(text for _, text in turns[:-1]), "output": turns[-1][1]}


def _turns(value: Any, role: str) -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [(role, value)]
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise ValueError(_NO_TURNS)
    return [_turn(turn) for turn in value]


def _turn(turn: Mapping[str, Any]) -> tuple[str, str]:
    """Role and text of a turn, whose content is a text or parts of text."""
    role, content = turn.get("role"), turn.get("content")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise ValueError("a turn that calls tools, where an answer is a text")
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(_NO_TURNS)
    return role, content


def _listed(text: str, member: type) -> Any:
    """A cell that is a list in JSON, of texts or of turns; any other is its text."""
    if text.startswith("["):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return values if all(isinstance(value, member) for value in values) else text
    return text


class _Counted:
    """Lines, and how many were read."""

    def __init__(self, lines: Iterator[str]):
        self._lines, self.count = lines, 0

    def __iter__(self) -> "_Counted":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.count += 1
        return line


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _begins_array(path: Path) -> bool:
    try:
        lines = _lines(path, LARGEST_FILE, _most(path, _LEAST_LINES, _LINE_BYTES))
        return next((line.lstrip()[:1] for line in lines if line.strip()), "") == "["
    except (OSError, UnfitFile, zlib.error, UnicodeDecodeError, EOFError):
        return False  # whoever reads it says what is wrong


def _array(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    content, most = bytearray(), _most(path, _LEAST_ROWS, _ROW_BYTES)
    for line in _lines(path, LARGEST_FILE, _most(path, _LEAST_LINES, _LINE_BYTES)):
        content += line.encode()
    require_small(content, MOST_MEMBERS)
    text = content.decode()
    del content
    values = enumerate(items_of(text), start=1)
    while True:
        try:
            number, value = next(values)
        except StopIteration:
            return
        except UnfitFile:
            raise
        except (ValueError, RecursionError) as fault:
            raise DataError(f"JSON in {path}", str(fault), "Mend the file.") from fault
        if not isinstance(value, dict):
            raise DataError(f"an object as item {number} of {path}", type(value).__name__, "Mend the file.")
        _require_few(number, most, "items")
        yield f"{path}, item {number}", value


def _delimited(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of CSV or TSV; an empty cell is none."""
    lines = _Counted(lines_of(path))
    try:
        table = csv.DictReader(lines, delimiter=delimiter, strict=True)
        if twice := repeated(table.fieldnames or ()):
            raise DataError(f"columns of unlike names in {path}", f"{twice[0]!r} twice", "Rename one of them.")
        for record in table:
            where = f"{path}:{lines.count}"
            if None in record or None in record.values():
                raise DataError(f"as many cells as columns at {where}", "another number", "Mend the row.")
            yield where, {name: value for name, value in record.items() if value != ""}
    except csv.Error as fault:
        raise DataError(f"CSV in {path}", str(fault), "Mend the file.") from fault


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingDependency("pyarrow", "read Parquet files", "pip install pyarrow") from None
    most, read, number = max(_LARGEST_EXPANDED, _MOST_EXPANDED * path.stat().st_size), 0, 0
    try:
        file = ParquetFile(path)
        if twice := repeated(file.schema_arrow.names):
            raise DataError(f"columns of unlike names in {path}", f"{twice[0]!r} twice", "Rename one of them.")
        if len(file.schema) > _MOST_COLUMNS:
            raise UnfitFile(f"{len(file.schema)} columns, where {_MOST_COLUMNS} are the most")
        _require_few(file.metadata.num_rows, _most(path, _LEAST_ROWS, _ROW_BYTES), "rows")
        declared = _declared(path, file)
        for batch in _batches(path, file) if declared <= most else ():
            read += sum(map(_size, batch.columns))
            if read > most:
                break
            for value in _values(batch, path):
                number += 1
                yield f"{path}, row {number}", {name: one for name, one in value.items() if one is not None}
    except (ArrowException, OSError) as fault:
        raise DataError(f"Parquet in {path}", first_line(fault), "Get the file anew.") from fault
    if max(declared, read) > most:
        raise UnfitFile(f"more than {most} bytes, once expanded")


def _values(batch: Any, path: Path) -> list[dict[str, Any]]:
    """A batch in Python's types, of which some are narrower: years, time zones, names that stand once."""
    try:
        return batch.to_pylist()
    except (ValueError, ArithmeticError, LookupError, TypeError) as fault:
        got = f"a value that Python has no form for ({first_line(fault)})"
        raise DataError(f"Parquet in {path}", got, "Leave that column out.") from fault


def _declared(path: Path, file: Any) -> int:
    """Bytes of the values as the file says, each text of a group counted once, and of the places of those in lists."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    lists = [place for place in range(len(file.schema)) if file.schema.column(place).max_repetition_level > 0]
    counts = values_of_columns(path, len(file.schema)) if lists else []
    places = sum(max(0, columns[place]) for columns in counts for place in lists)
    return sum(group.total_byte_size for group in groups) + _PLACE_BYTES * places


def _batches(path: Path, file: Any) -> Iterator[Any]:
    """Some rows at a time, in which texts that are stored once for many rows or items are stored so still."""
    columns = [file.schema.column(place) for place in range(len(file.schema))]
    names = [one.path for one in columns if one.physical_type == "BYTE_ARRAY"]
    texts = type(file)(path, read_dictionary=names)
    spans = [[number] for number in range(file.metadata.num_row_groups)]  # texts of two groups do not join in a list
    if not any("." in name for name in names):
        spans = [[number for (number,) in spans]]
    for groups in spans:
        for batch in texts.iter_batches(16 * _PARQUET_ROWS, row_groups=groups):  # of few it takes long
            for begin in range(0, len(batch), _PARQUET_ROWS):
                yield batch.slice(begin, _PARQUET_ROWS)


def _size(array: Any) -> int:
    """Bytes of an Arrow array once each row has a text of its own, and each item of a list a place."""
    from pyarrow import types

    if types.is_struct(array.type):
        return sum(map(_size, array.flatten()))
    if types.is_map(array.type):
        begin, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        parts = (part.slice(begin, end - begin) for part in (array.keys, array.items))
        return _PLACE_BYTES * (len(array) + end - begin) + sum(map(_size, parts))
    if types.is_nested(array.type):
        items = array.flatten()
        return _PLACE_BYTES * (len(array) + len(items)) + _size(items)
    texts = getattr(array, "dictionary", None)
    if texts is None:
        return array.nbytes
    places = array.indices.drop_null().to_numpy()
    long = texts.type in ("large_string", "large_binary")
    if len(places) and not 0 <= places.min() <= places.max() < len(texts):
        raise UnfitFile(f"a text of a number beyond the {len(texts)} that are there")
    ends = np.frombuffer(texts.buffers()[1], np.int64 if long else np.int32)[texts.offset :]
    return int((ends[places + 1].astype(np.int64) - ends[places]).sum()) + array.indices.nbytes


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file, compressed or not; `UnfitFile` for one without end, and for a small file that becomes
    absurdly large."""
    return _lines(path, LONGEST_LINE, _most(path, _LEAST_ROWS, _ROW_BYTES))


def _most(path: Path, least: int, each: int) -> int | None:
    """How much a compressed file may hold: kilobytes may become gigabytes of equal rows. None of another file."""
    compressed = path.suffix == ".gz" or _kind(path) == ".parquet"
    return max(least, path.stat().st_size // each) if compressed else None


def _require_few(count: int, most: int | None, what: str) -> None:
    if most is not None and count > most:
        raise UnfitFile(f"more than {most} {what} in so small a file; expand it first, if they are meant")


def _lines(path: Path, longest: int, most_lines: int | None = None) -> Iterator[str]:
    with opened(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as plain:
        most = max(_LARGEST_EXPANDED, _MOST_EXPANDED * os.fstat(descriptor).st_size)
        file = gzip.GzipFile(fileobj=plain) if path.suffix == ".gz" else plain
        size = count = empty = 0
        while line := file.readline(longest + 1):
            size, count, empty = size + len(line), count + 1, empty + line.isspace()
            _require_few(count, most_lines, "lines")
            if empty > _MOST_EMPTY:
                raise UnfitFile(f"more than {_MOST_EMPTY} empty lines")
            if len(line) > longest:
                raise UnfitFile(f"a line of more than {longest} bytes")
            if size > most:
                raise UnfitFile(f"more than {most} bytes, once expanded")
            yield line.decode("utf8").removeprefix("\ufeff") if size == len(line) else line.decode("utf8")
