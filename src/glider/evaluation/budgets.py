"""How many tokens run together: a setting, or what is found by measurement on the device at hand.

The measurement grows the budget twofold as long as that pays in time and memory holds it. What it found is kept beside
the results (`_batch.json` of each router and set), by device and kind of task, so that a later call takes the same.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from glider.errors import ConfigError
from glider.files.json_text import read_json

BATCH_FILE = "_batch.json"
PAYS = 1.05  # times the speed of half the budget, below which growing ends
LARGEST = 1 << 20  # tokens
SMALLEST = 96

Kind = Literal["choices", "answers"]


@dataclass(frozen=True)
class Budget:
    """One dial: tokens of the prompts in a batch, padding counted; what else a batch holds follows from it."""

    tokens: int = 768

    @property
    def choice_tokens(self) -> int:
        """Of the choices in a batch, padding counted."""
        return max(1, self.tokens * 2 // 3)

    @property
    def rows(self) -> int:
        """That are answered together."""
        return max(1, self.tokens // SMALLEST)


USUAL = Budget()


def tokens_of(text: str) -> int | Literal["auto"]:
    """`--batch-tokens` of a command line; raises `ConfigError` for what is neither a number that is enough nor auto."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or not SMALLEST <= int(text) <= LARGEST:
        raise ConfigError(f"--batch-tokens auto, or a number from {SMALLEST} to {LARGEST}", text, "Mend the number.")
    return int(text)


@dataclass(frozen=True)
class Probe:
    """One batch of a budget: what it computed in which time, and whether it held all rows there are."""

    tokens: int
    seconds: float
    all_rows: bool

    @property
    def speed(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class MeasuredBudget:
    """What a measurement gave, and all that it saw: tokens a second by budget, None where memory did not hold it."""

    budget: Budget
    speeds: Mapping[int, float | None]

    @property
    def content(self) -> dict[str, Any]:
        """For `_batch.json` and the result."""
        speeds = {str(tokens): speed and round(speed, 1) for tokens, speed in self.speeds.items()}
        return {"tokens": self.budget.tokens, "tokens_per_second": speeds}


def find_budget(probe: Callable[[Budget], Probe]) -> MeasuredBudget:
    """The budget beyond which more tokens in a batch no longer pay.

    `probe` runs one batch of the longest rows. What does not fit into memory ends the growth, and of what fits half is
    taken, as other tasks may need more. Raises the fault of memory where the smallest budget does not fit.
    """
    speeds: dict[int, float | None] = {}
    best, budget, beyond = None, USUAL, False
    while budget.tokens <= LARGEST:
        tried = _fitting(probe, budget, last=budget.tokens // 2 < SMALLEST)
        speeds[budget.tokens] = tried and tried.speed
        if tried is None:
            if best is None:  # not even the usual one
                budget = Budget(budget.tokens // 2)
                beyond = True
                continue
            return MeasuredBudget(Budget(max(SMALLEST, best.tokens // 2)), speeds)
        pays = best is None or tried.speed > PAYS * (speeds[best.tokens] or 0.0)
        best = budget if pays else best
        if not pays or tried.all_rows or beyond:
            break
        budget = Budget(2 * budget.tokens)
    assert best is not None
    return MeasuredBudget(best, speeds)


def _fitting(probe: Callable[[Budget], Probe], budget: Budget, *, last: bool) -> Probe | None:
    """What a budget gives, None where memory does not hold it."""
    try:
        return probe(budget)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as fault:
        if last or not _of_memory(fault):
            raise
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _of_memory(fault: BaseException) -> bool:
    text = str(fault).lower()
    return isinstance(fault, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text


def timed(run: Callable[[], int]) -> tuple[int, float]:
    """Tokens that `run` computed, and its seconds, after one run that is not timed."""
    run()
    began = time.perf_counter()
    return run(), time.perf_counter() - began


def device_name(device: str) -> str:
    """What was measured on: the GPU by its name, else the device and the threads."""
    place = torch.device(device)
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return f"{place.type}, {torch.get_num_threads()} threads"


def read_batches(folder: Path) -> dict[str, Any]:
    """What earlier calls measured, by device and kind; raises `ConfigError` for a file of another form."""
    path = folder / BATCH_FILE
    try:
        batches = read_json(path)
        for kinds in batches.values():
            for measured in kinds.values():
                if not isinstance(measured["tokens"], int) or not 1 <= measured["tokens"] <= LARGEST:
                    raise ValueError(f"{measured['tokens']!r} tokens")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as fault:
        remedy = "Remove it, or give --batch-tokens a number."
        raise ConfigError(f"measured batches in {path}", f"{type(fault).__name__}: {fault}", remedy) from fault
    return batches


def known_budget(batches: Mapping[str, Any], kind: Kind, device: str) -> Budget | None:
    """What was measured for this kind of tasks on this device."""
    measured = batches.get(device, {}).get(kind)
    return None if measured is None else Budget(measured["tokens"])


def with_batch(batches: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured before, and the measurement that a result tells of."""
    measured = {name: value for name, value in batch.items() if name not in ("device", "kind")}
    device = batch["device"]
    return {**batches, device: {**batches.get(device, {}), batch["kind"]: measured}}
