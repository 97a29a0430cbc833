"""Text as it is written, for batches of prompts."""

import threading
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

_UNFINISHED = "\ufffd"  # the end of a multi-byte character is still to come


@dataclass(frozen=True)
class Piece:
    """New text of one row of a batch; `ended` when it is the row's last."""

    row: int
    text: str
    ended: bool = False


class PieceStreamer(BaseStreamer):
    """Turns the tokens of each step into pieces, handed over as they come."""

    def __init__(self, tokenizer: Any, rows: int, ends: Set[int], emit: Callable[[Piece], None]):
        self._tokenizer, self._ends, self._emit = tokenizer, ends, emit
        self._ids: list[list[int]] = [[] for _ in range(rows)]
        self._shown = [0] * rows
        self._ended = [False] * rows
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # transformers hands over the prompt first
            self._prompt_seen = True
            return
        for row, token in enumerate(value.reshape(-1).tolist()):
            if self._ended[row]:
                continue
            self._ended[row] = token in self._ends
            self._ids[row].append(token)
            self._show(row)

    def end(self) -> None:
        for row, ended in enumerate(self._ended):
            if not ended:
                self._ended[row] = True
                self._show(row)

    def _show(self, row: int) -> None:
        text = self._tokenizer.decode(self._ids[row], skip_special_tokens=True)
        if text.endswith(_UNFINISHED) and not self._ended[row]:
            return
        new = text[self._shown[row] :]
        self._shown[row] = len(text)
        if new or self._ended[row]:
            self._emit(Piece(row, new, self._ended[row]))


class StopRequested(StoppingCriteria):
    """Ends generation when the reader has gone."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)
