"""Work without gradients that a kill only interrupts: stages of items, with what was found so far in one file."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open

from glider.contribute.loop import restoring, save_due
from glider.files.disk import save_tensors, write_file
from glider.progress import CountTick
from glider.shapes import Tensor

Item = TypeVar("Item")
_DRAW = "draw"  # the generator's state
_PATIENCE = 9  # times what a saving took are worked before the next, or a state of gigabytes would take most of it


class Stages:
    """Stages that follow each other, each over its items in one order.

    `state_file` holds what was found, the stage, how many of its items are done, and the generator's state. A second
    run with the same file skips what is done and ends with the same bits as an uninterrupted one, if all that items
    leave to later ones lies in `tensors`, in `lists`, or in `draw`.

    Arguments:
        state_file: Where the state is saved, between items.
        tensors: What items change, by name, as it is at the beginning.
        lists: Names of lists to which items append tensors of one width.
        draw: What random numbers are drawn by.
        report: Told of each item: its stage, the number done, how many there are.

    Raises: `TrainingError` for a file that is no state of these names.
    """

    def __init__(
        self,
        state_file: Path,
        report: CountTick,
        *,
        tensors: Mapping[str, Tensor] | None = None,
        lists: Sequence[str] = (),
        draw: torch.Generator | None = None,
    ):
        self.tensors = dict(tensors or {})
        self.lists: dict[str, list[Tensor]] = {name: [] for name in lists}
        self._state_file, self._report, self._draw = state_file, report, draw or torch.Generator()
        self._entered, self._stage, self._done = 0, 0, 0
        if state_file.exists():
            with restoring(state_file):
                self._restore()
        self._saved, self._took = time.monotonic(), 0.0

    def todo(self, what: str, items: Sequence[Item]) -> Iterator[Item]:
        """The items of the next stage that are not done; each counts as done when the next is asked for."""
        if self._enters():
            for item in items[self._done :]:
                yield item
                self._did(what, len(items))

    def numbers(self, what: str, name: str, count: int) -> Callable[[Callable[[], float]], float]:
        """The next stage, of numbers where each may decide what is asked next: a function that finds the next one, or
        knows it from the list `name`. There are `count` in all."""
        self._enters()
        known = iter([number for part in self.lists[name] for number in part.tolist()])

        def number(find: Callable[[], float]) -> float:
            if (value := next(known, None)) is None:
                value = find()
                self.lists[name].append(torch.tensor([value], dtype=torch.float64))
                self._did(what, count)
            return value

        return number

    def _enters(self) -> bool:
        """Begin the next stage; False where a later one had begun already."""
        self._entered += 1
        if self._entered > self._stage:
            self._stage, self._done = self._entered, 0
        return self._entered == self._stage

    def _did(self, what: str, count: int) -> None:
        self._done += 1
        self._report(what, self._done, count)
        if save_due(self._done, self._saved + _PATIENCE * self._took):
            began = time.monotonic()
            self._save()
            self._saved = time.monotonic()
            self._took = self._saved - began

    def _save(self) -> None:
        tensors = {f"tensor.{name}": tensor.contiguous().clone() for name, tensor in self.tensors.items()}
        tensors |= {f"list.{name}": torch.cat(parts) for name, parts in self.lists.items() if parts}
        tensors[_DRAW] = self._draw.get_state()
        metadata = {"progress": json.dumps([self._stage, self._done])}
        write_file(self._state_file, lambda path: save_tensors(tensors, path, metadata))

    def _restore(self) -> None:
        with safe_open(self._state_file, framework="pt") as state:
            self._stage, self._done = map(int, json.loads(state.metadata()["progress"]))
            names = set(state.keys())
            self._draw.set_state(state.get_tensor(_DRAW))
            for name in self.tensors:
                self.tensors[name] = state.get_tensor(f"tensor.{name}")
            for name in self.lists:
                if f"list.{name}" in names:
                    self.lists[name] = [state.get_tensor(f"list.{name}")]
