"""Work without gradients that a kill only interrupts: stages of items, with what was found so far in one file."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from glider.contribute.loop import save_due
from glider.contribute.states import Fits, like, misfit, read_state, restoring, write_state
from glider.experts.router_files import Shape, fits_shape
from glider.files.opening import UnfitFile
from glider.files.tensor_file import LARGEST_VALUE, sane
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
        count: How many stages there are.
        tensors: What items change, by name, as it is at the beginning.
        shapes: Of those that take another shape in the course of the work, as those of a trained router.
        lists: Lists to which items append float32 tensors, by name: the most rows of each, and the shape of a row.
        numbers: The list of numbers that `numbers` finds, and the most of them, where a stage finds any.
        draw: What random numbers are drawn by.
        report: Told of each item: its stage, the number done, how many there are.

    Raises: `TrainingError` for a file that is no state of these names, shapes and stages.
    """

    def __init__(
        self,
        state_file: Path,
        report: CountTick,
        *,
        count: int,
        tensors: Mapping[str, Tensor] | None = None,
        shapes: Mapping[str, Shape] | None = None,
        lists: Mapping[str, tuple[int, ...]] | None = None,
        numbers: tuple[str, int] | None = None,
        draw: torch.Generator | None = None,
    ):
        self.tensors = dict(tensors or {})
        rows = {name: (most, torch.zeros(row)) for name, (most, *row) in (lists or {}).items()}
        rows |= {} if numbers is None else {numbers[0]: (numbers[1], torch.zeros((), dtype=torch.float64))}
        self.lists: dict[str, list[Tensor]] = {name: [] for name in rows}
        self._state_file, self._report, self._draw = state_file, report, draw or torch.Generator()
        self._entered, self._stage, self._done = 0, 0, 0
        if state_file.exists():
            with restoring(state_file):
                self._restore(count, shapes or {}, rows)
        self._saved, self._took = time.monotonic(), 0.0

    def todo(self, what: str, items: Sequence[Item]) -> Iterator[Item]:
        """The items of the next stage that are not done; each counts as done when the next is asked for."""
        if self._enters():
            self.require(self._done <= len(items), f"{self._done} items done of {len(items)}")
            for item in items[self._done :]:
                yield item
                self._did(what, len(items))

    def numbers(self, what: str, name: str, count: int) -> Callable[[Callable[[], float]], float]:
        """The next stage, of numbers where each may decide what is asked next: a function that finds the next one, or
        knows it from the list `name`. There are `count` in all."""
        self._enters()
        self.require(self._done <= count, f"{self._done} numbers of {count}")
        known = iter([number for part in self.lists[name] for number in part.tolist()])

        def number(find: Callable[[], float]) -> float:
            if (value := next(known, None)) is None:
                value = find()
                self.lists[name].append(torch.tensor([value], dtype=torch.float64))
                self._did(what, count)
            return value

        return number

    def listed(self, name: str, count: int | None = None) -> Tensor:
        """All rows of a list, so many where the number is known; raises `TrainingError` where a state had others."""
        rows = sum(map(len, self.lists[name]))
        self.require(rows > 0 and rows == (count or rows), f"{rows} rows of {name}, not {count or 'some'}")
        return torch.cat(self.lists[name])

    def require(self, holds: bool, got: str) -> None:
        """Raise `TrainingError` where what a state held is not what the stages before leave behind."""
        if not holds:
            raise misfit(self._state_file, got)

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
        write_state(self._state_file, tensors, [self._stage, self._done])

    def _restore(self, count: int, shapes: Mapping[str, Shape], rows: Mapping[str, tuple[int, Tensor]]) -> None:
        lengths: dict[str, int] = {}

        def fits(name: str) -> Fits:
            start = self.tensors[name]
            return lambda shape, dtype: (
                dtype == start.dtype
                and (shape == start.shape or (name in shapes and fits_shape(shape, shapes[name], lengths)))
            )

        def listing(most: int, row: Tensor) -> Fits:
            return lambda shape, dtype: (shape[1:], dtype) == (row.shape, row.dtype) and 0 < sum(shape[:1]) <= most

        needed = {f"tensor.{name}": fits(name) for name in self.tensors} | {_DRAW: like(self._draw.get_state())}
        progress, tensors = read_state(
            self._state_file, needed, {f"list.{name}": listing(*one) for name, one in rows.items()}
        )
        if [type(part) for part in progress] != [int, int] or not 0 < progress[0] <= count or progress[1] < 0:
            raise UnfitFile(f"{str(progress)[:60]}, no stage of {count} and items done")
        if wild := [name for name, one in tensors.items() if not _is_possible(one)]:
            raise UnfitFile(f"NaN, infinity, or values beyond {LARGEST_VALUE:g}, in {wild[0]}")
        self._stage, self._done = progress
        self._draw.set_state(tensors[_DRAW])
        self.tensors = {name: tensors[f"tensor.{name}"] for name in self.tensors}
        self.lists |= {name: [tensors[f"list.{name}"]] for name in rows if f"list.{name}" in tensors}


def _is_possible(values: Tensor) -> bool:
    """Whether items find such values: float64 are sums and losses of any size."""
    if values.dtype == torch.float64:
        return bool(values.isfinite().all())
    return values.dtype == torch.uint8 or sane(values)
