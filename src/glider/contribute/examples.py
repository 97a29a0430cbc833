"""Rows of a task as tokens: encoded once, batched by length, padded."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glider.data.rows import Row
from glider.experts.prompt_format import PromptFormat
from glider.inference.prompts import require_known
from glider.inference.text_length import exceeds, most_tokens

_BUCKET = 8  # batches that are sorted by length together


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a row: the prompt, and the answer with its end token."""

    prompt: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


def encode_rows(
    rows: Iterable[Row], tokenizer: Any, prompt: PromptFormat, max_tokens: int, model: Any = None
) -> tuple[list[EncodedRow], int]:
    """Tokenise rows once; rows beyond `max_tokens` are left out and counted.

    Raises `QueryError` for a token that the `model` has no embedding for.
    """
    fitting, beyond, most = [], 0, most_tokens(max_tokens)
    for row in rows:
        long = exceeds(tokenizer, row.input, most) or exceeds(tokenizer, row.output, most)
        encoded = None if long else _encoded(row, tokenizer, prompt)
        if encoded is None or len(encoded) > max_tokens:
            beyond += 1
            continue
        if model is not None:
            require_known([*encoded.prompt, *encoded.target], model)
        fitting.append(encoded)
    return fitting, beyond


def _encoded(row: Row, tokenizer: Any, prompt: PromptFormat) -> EncodedRow:
    return EncodedRow(prompt.prompt_ids(tokenizer, row.input), prompt.target_ids(tokenizer, row.output))


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
