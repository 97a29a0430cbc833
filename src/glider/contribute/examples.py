"""Rows of a task: read, split, turned into tokens, batched by length."""

import gzip
import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from glider.config import faults
from glider.errors import DataError
from glider.experts.prompt_format import PromptFormat

_BUCKET = 8  # batches that are sorted by length together


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


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a row: the prompt, and the answer with its end token."""

    prompt: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


def read_rows(path: Path | str, split: str | None = None) -> list[Row]:
    """Read JSON Lines (also gzipped), the rows of one split only if given; a file that names no splits is all of it.

    Raises `DataError` with the file and line number for a row that is not JSON or lacks `input` or `output`.
    """
    path = Path(path)
    rows = []
    try:
        with gzip.open(path, "rt", encoding="utf8") if path.suffix == ".gz" else path.open(encoding="utf8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_parse_row(line, f"{path}:{number}"))
    except FileNotFoundError:
        raise DataError(f"a JSON Lines file at {path}", "no such file", "Check the path.") from None
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError, IsADirectoryError) as fault:
        raise DataError(f"JSON Lines in {path}", str(fault), "Give a text file, or one compressed by gzip.") from fault
    chosen = [row for row in rows if row.split == split] if split and any(row.split for row in rows) else rows
    if not chosen:
        of_split = f" of split {split}" if split else ""
        raise DataError(f"at least one row{of_split} in {path}", "none", "Add rows with `input` and `output`.")
    return chosen


def split_rows(rows: Sequence[Row], validation: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and validation rows: by the rows' own `split` (train, val) where they have one, else at random.

    At most `validation` rows validate, and never more than a tenth of the rows where the file names no split.
    """
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    if any(row.split for row in rows):
        train = [row for row in shuffled if row.split == "train"]
        held_back = [row for row in shuffled if row.split in ("val", "validation", "dev")][:validation]
    else:
        count = min(validation, len(rows) // 10)
        train, held_back = shuffled[count:], shuffled[:count]
    if not train:
        raise DataError("rows to train on", "none (no row has the split `train`)", "Name the split, or leave it out.")
    return train, held_back


def encode_rows(
    rows: Iterable[Row], tokenizer: Any, prompt: PromptFormat, max_tokens: int
) -> tuple[list[EncodedRow], int]:
    """Tokenise rows once; rows beyond `max_tokens` are left out and counted."""
    encoded = [
        EncodedRow(prompt.prompt_ids(tokenizer, row.input), prompt.target_ids(tokenizer, row.output)) for row in rows
    ]
    kept = [row for row in encoded if len(row) <= max_tokens]
    return kept, len(encoded) - len(kept)


class Batches:
    """An endless, seekable sequence of batches: batch `i` depends on the seed and `i` alone, so training resumes.

    Rows are shuffled every epoch and sorted by length within groups of eight batches, which leaves little padding.
    """

    def __init__(self, rows: Sequence[EncodedRow], batch_size: int, seed: int):
        self.rows, self.batch_size, self.seed = rows, min(batch_size, len(rows)), seed
        self._epoch, self._order = -1, []

    def __getitem__(self, index: int) -> list[EncodedRow]:
        per_epoch = len(self.rows) // self.batch_size
        epoch, position = divmod(index, per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return [self.rows[i] for i in self._order[position]]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        chance = random.Random(f"{self.seed}-{epoch}")
        order = list(range(len(self.rows)))
        chance.shuffle(order)
        del order[len(order) // self.batch_size * self.batch_size :]  # any rows, not the longest, wait for their turn
        group = self.batch_size * _BUCKET
        batches = []
        for start in range(0, len(order), group):
            by_length = sorted(order[start : start + group], key=lambda i: len(self.rows[i]))
            batches += [by_length[i : i + self.batch_size] for i in range(0, len(by_length), self.batch_size)]
        chance.shuffle(batches)
        return batches


def collate(rows: Sequence[EncodedRow], pad_id: int, encoder_decoder: bool) -> dict[str, torch.Tensor]:
    """Pad a batch. Decoder-only rows are padded on the left, so that all targets stand at the end together.

    Returns `input_ids`, `attention_mask` and `labels` (-100 where there is no target), with `position_ids` for
    decoder-only models; `labels` covers only the trailing positions up to the longest target.
    """
    longest_target = max(len(row.target) for row in rows)
    labels = torch.full((len(rows), longest_target), -100)
    sources = [row.prompt if encoder_decoder else row.prompt + row.target for row in rows]
    width = max(map(len, sources))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, (row, source) in enumerate(zip(rows, sources, strict=True)):
        here = slice(0, len(source)) if encoder_decoder else slice(width - len(source), width)
        ids[i, here] = torch.tensor(source)
        mask[i, here] = 1
        start = 0 if encoder_decoder else longest_target - len(row.target)
        labels[i, start : start + len(row.target)] = torch.tensor(row.target)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if not encoder_decoder:
        batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return batch


def _parse_row(line: str, where: str) -> Row:
    try:
        return Row.model_validate_json(line)
    except ValidationError as fault:
        raise DataError(f"a row with `input` and `output` at {where}", faults(fault), "Mend the row.") from fault
