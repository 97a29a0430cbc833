"""From a file of prompts to a file of answers, which appears whole; until then chunks of answers lie beside it."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glider.batch.answer_rows import pyarrow_parquet, unanswered
from glider.batch.answering import Answering, AnswerSettings
from glider.batch.chunks import read_chunk, write_chunk
from glider.batch.prompts import PromptRow, chunks_of, read_prompts
from glider.data.rows import rows_digest
from glider.errors import ConfigError
from glider.evaluation.run_plan import pool_hash
from glider.files.disk import canonical_json, existing, work_directory, write_file, write_json
from glider.files.held import empty, held
from glider.files.json_text import LARGEST_RESULT, MOST_OF_RESULT, read_json
from glider.files.replacing import is_directory, sweep
from glider.inference.spec import ModelSpec
from glider.jobs.run import only_writer

FORMAT = 1
Answered = Iterator[tuple[int, list[dict[str, Any]]]]
"""Numbers of chunks, and the answers to their rows, in any order."""


@dataclass(frozen=True)
class BatchRun:
    """One file of prompts, one model, one file of answers (JSON Lines, or Parquet by its name)."""

    data: Path
    out: Path
    spec: ModelSpec
    settings: AnswerSettings
    columns: Mapping[str, str]

    def go(self, answer: Callable[[Sequence[list[PromptRow]]], Answered], tick: Callable[[int, int], None]) -> str:
        """Answer the missing chunks by `answer` and write all answers; returns "done" or "unchanged".

        The same call resumes after an interruption. Raises `ConfigError` if `out` holds other answers or none, or
        another process is writing it.
        """
        if self.out.suffix == ".parquet":
            pyarrow_parquet()
        rows, key = read_prompts(self.data, self.columns), self.key
        record = {"key": key, "rows": len(rows), **self._content()}
        if os.path.lexists(self.out):
            if self._record().get("key") == key:
                unanswered(self.out, len(rows))  # somebody may have cut it short since
                if self._record() != record:
                    write_json(self.record, record)
                sweep(self.out.parent)
                self._clear_leftovers()
                return "unchanged"
            expected = f"a new file at {self.out}, or the answers of this very command"
            raise ConfigError(expected, "others", "Remove it, or give another --out.")
        if os.path.lexists(self.record) and "key" not in self._record():
            expected = f"the record of earlier answers at {self.record}, or no file"
            raise ConfigError(expected, "something else", "Move it away, or give another --out.")
        chunks = chunks_of(rows, self.settings.batch_size)
        with (
            existing(self.out.parent),
            held(work_directory(self.work)) as work,
            only_writer(work),
            held(work_directory(work / key[:16])) as place,
        ):
            missing = [number for number, chunk in enumerate(chunks) if _answers(place, number, chunk) is None]
            done = len(chunks) - len(missing)
            if missing:
                with closing(answer([chunks[number] for number in missing])) as answered:  # pyright: ignore
                    for number, chunk_answers in answered:
                        write_chunk(_place(place, missing[number]), chunk_answers)
                        done += 1
                        tick(done, len(chunks))
            write_json(self.record, record)  # answers without it are others
            try:
                self._write(place, chunks)
            except BaseException:
                if not self.out.exists():
                    self.record.unlink()  # it would speak of answers that are not there
                raise
            empty(work)
        self.work.rmdir()
        return "done"

    @property
    def work(self) -> Path:
        """The directory of answers until all are there."""
        return self.out.parent / f".{self.out.name}.answering"

    @property
    def record(self) -> Path:
        """The record beside the answers of how they were made."""
        return self.out.parent / f"{self.out.name}.run.json"

    @property
    def key(self) -> str:
        """The hash of everything that decides the answers; the machine is not part of it."""
        return hashlib.sha256(canonical_json([FORMAT, self._content()]).encode()).hexdigest()

    def faults(self) -> int:
        """Rows without an answer."""
        count = self._record().get("rows")
        return unanswered(self.out, count if isinstance(count, int) else 0)

    def _content(self) -> dict[str, Any]:
        if not self.data.is_file():
            raise ConfigError(f"a file of prompts at {self.data}", "no such file", "Check the path.")
        spec = self.spec.model_dump(mode="json", exclude={"device", "pool", "require_key", "arguments"})
        hashes = {"data": rows_digest(self.data), "pool": pool_hash(self.spec.open_pool())}
        settings = self.settings.content
        return {"spec": spec, "settings": settings, "columns": dict(self.columns), "hashes": hashes}

    def _clear_leftovers(self) -> None:
        """Remove what a process left that was killed once the answers were there; nothing while one is at work."""
        if not is_directory(self.work):
            return
        with suppress(ConfigError, OSError), held(self.work) as work, only_writer(work):
            empty(work)
        with suppress(OSError):
            self.work.rmdir()

    def _record(self) -> dict[str, Any]:
        try:
            record = read_json(self.record, LARGEST_RESULT, MOST_OF_RESULT)
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _write(self, place: Path, chunks: Sequence[list[PromptRow]]) -> None:
        def answers() -> Iterator[dict[str, Any]]:
            for number, chunk in enumerate(chunks):
                if (chunk_answers := _answers(place, number, chunk)) is None:
                    got, remedy = "a file that was changed meanwhile", "Give the same command again."
                    raise ConfigError(f"the answers in {_place(place, number)}", got, remedy)
                yield from chunk_answers

        def lines(path: Path) -> None:
            with path.open("w", encoding="utf8") as file:
                for answer in answers():
                    file.write(json.dumps(answer, ensure_ascii=False) + "\n")

        write_file(self.out, (lambda path: _write_parquet(path, answers())) if self.out.suffix == ".parquet" else lines)


def here(spec: ModelSpec, settings: AnswerSettings) -> Callable[[Sequence[list[PromptRow]]], Answered]:
    """Chunks answered by this process, one after the other."""

    def answer(chunks: Sequence[list[PromptRow]]) -> Answered:
        with _loaded(spec, settings) as model:
            answering = Answering(model, settings)
            for number, rows in enumerate(chunks):
                yield number, answering.chunk(rows)

    return answer


@contextmanager
def _loaded(spec: ModelSpec, settings: AnswerSettings) -> Iterator[Any]:
    if settings.engine == "transformers":
        yield spec.load()
        return
    from glider.engines.vllm.offline import of_spec

    model = of_spec(spec)
    try:
        yield model
    finally:
        model.close()


def _place(directory: Path, number: int) -> Path:
    return directory / f"{number:08d}.json"


def _answers(directory: Path, number: int, rows: Sequence[PromptRow]) -> list[dict[str, Any]] | None:
    """The answers to a chunk of these rows; None where they are to be written, or written anew."""
    return read_chunk(_place(directory, number), [row.row for row in rows])


def _write_parquet(path: Path, answers: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa

    texts = ("id", "text", "finish_reason", "verdict", "expert", "description", "fault")
    columns = [("row", pa.int64()), ("alpha", pa.float64()), *((name, pa.string()) for name in texts)]
    schema = pa.schema(columns)
    pyarrow_parquet().write_table(pa.Table.from_pylist(list(answers), schema=schema), path)
