"""Prompts in a file: rows of which only the question is needed."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from glider.config import faults
from glider.data.records import from_cells, instructed, is_table, lines_of, parsed_line, records
from glider.errors import DataError
from glider.files.opening import UnfitFile
from glider.inference.queries import Query
from glider.instructions.prompts import Pair

_FORMS = (
    "`input` (an `instruction` is put before it) or `prompt`, a text or the turns of a chat, or `messages`; "
    "--map names another column"
)


class PromptRow(BaseModel):
    """A prompt with its id and description. An answer in the row is ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: int  # its place in the file, from 0
    prompt: str | list[dict[str, Any]]
    id: str | int | None = None
    description: str | None = None

    def query(self, description: str | None, examples: Sequence[Pair] = ()) -> Query:
        """The query; `description` is for rows without one, `examples` for every row.

        Raises `QueryError` for a malformed chat.
        """
        described = self.description or description
        if isinstance(self.prompt, str):
            return Query(self.prompt, described, tuple(examples))
        return Query.chat(self.prompt, description=described, examples=tuple(examples))


def read_prompts(path: Path, columns: Mapping[str, str]) -> list[PromptRow]:
    """The prompts of a file in any form of rows; raises `DataError` for a malformed one."""
    try:
        rows = [_row(number, record, columns, where) for number, (where, record) in enumerate(_records(path, columns))]
    except FileNotFoundError:
        raise DataError(f"a file of prompts at {path}", "no such file", "Check the path.") from None
    except (OSError, UnfitFile, zlib.error, EOFError, UnicodeDecodeError) as fault:
        raise DataError(f"prompts in {path}", str(fault), "Give a text file, or one compressed by gzip.") from fault
    if not rows:
        raise DataError(f"at least one prompt in {path}", "none", f"Add rows with {_FORMS}.")
    return rows


def chunks_of(rows: Sequence[PromptRow], size: int) -> list[list[PromptRow]]:
    """The rows in their order, this many at a time: a chunk is answered and stored together."""
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


def _records(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if is_table(path):
        for where, record in records(path):
            yield where, from_cells(path, record, {}, _columns(columns))
        return
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            try:
                record = parsed_line(line)
            except (ValueError, RecursionError) as fault:
                raise DataError(f"a row at {path}:{number}", f"no JSON ({fault})", "Mend the row.") from fault
            if not isinstance(record, dict):
                raise DataError(f"a row at {path}:{number}", f"no object, but {type(record).__name__}", "Mend the row.")
            yield f"{path}:{number}", record


def _columns(columns: Mapping[str, str]) -> tuple[str, ...]:
    return (columns["input"],) if "input" in columns else ("input", "prompt", "messages")


def _row(number: int, record: Mapping[str, Any], columns: Mapping[str, str], where: str) -> PromptRow:
    column = next((name for name in _columns(columns) if name in record), None)
    try:
        instruction = instructed(record) if "input" not in columns and column in (None, "input") else None
    except ValueError as fault:
        raise DataError(f"a prompt at {where}", str(fault), f"Rows have {_FORMS}.") from fault
    if column is None and instruction is None:
        raise DataError(f"a prompt at {where}", f"only {', '.join(map(str, record))}"[:200], f"Rows have {_FORMS}.")
    prompt = instruction or record[column or "input"]
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict) and prompt[-1].get("role") == "assistant":
        prompt = prompt[:-1]  # the answer that somebody gave
    described = record.get(columns.get("definition", "description"), record.get("definition"))
    try:
        return PromptRow(row=number, prompt=prompt, id=record.get("id"), description=described)
    except ValidationError as fault:
        raise DataError(f"a prompt at {where}", faults(fault), f"Rows have {_FORMS}.") from fault
