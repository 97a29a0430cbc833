"""The one training loop: AdamW on a few parameters, resumable to the bit, best checkpoint kept."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from glider.contribute.examples import Batches, EncodedRow
from glider.contribute.settings import Schedule
from glider.contribute.states import Fits, like, read_state, restoring, write_state
from glider.contribute.targets import target_logits
from glider.errors import TrainingError
from glider.files.opening import UnfitFile
from glider.jobs.saving import save_steps
from glider.shapes import Float, Tensor

SAVE_SECONDS = 20.0
SEND_SECONDS = 120.0  # where a state is sent somewhere, and `--checkpoint-steps` take longer
_VALUES = ("now", "best")
_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, once it has made a step


@dataclass
class Progress:
    """What has happened so far; saved with every checkpoint, reported after every step."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    best_loss: float | None = None  # None without validation rows
    best_step: int = 0
    validation: list[tuple[int, float]] = field(default_factory=list)


_PROGRESS = TypeAdapter(Progress)


class Loop:
    """Trains `parameters` of a model in place, in stages that a kill at any moment only interrupts.

    `state_file` holds parameters, optimiser moments and progress; a second run with the same file goes on from it and
    ends with the same bits as an uninterrupted one, unless `minutes` ends it early.
    """

    def __init__(
        self,
        model: Any,
        parameters: Mapping[str, nn.Parameter],
        schedule: Schedule,
        pad_id: int,
        state_file: Path,
        *,
        autocast: bool,
        seed: int,
    ):
        self.model, self.parameters, self.schedule = model, dict(parameters), schedule
        self.pad_id, self.state_file, self.autocast, self.seed = pad_id, state_file, autocast, seed
        self.optimiser = torch.optim.AdamW(self.parameters.values(), lr=schedule.learning_rate, weight_decay=0.0)
        self.best = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.progress = Progress()

    def run(self, batches: Batches, validation: Sequence[EncodedRow], report: Callable[[Progress], None]) -> Progress:
        """Train to the end of the schedule or of the minutes, then leave the best parameters in the model."""
        self._resume()
        resumed = self.progress.step
        began, before, saved = time.monotonic(), self.progress.seconds, time.monotonic()
        while self.progress.step < self.schedule.steps and not self._out_of_time():
            step = self.progress.step
            self.progress.loss = self._step(batches[step], step)
            self.progress.step = step + 1
            if self.schedule.validates_after(step):
                self._validate(validation)
            self.progress.seconds = before + time.monotonic() - began
            report(self.progress)
            if save_due(self.progress.step, saved):
                self._save()
                saved = time.monotonic()
        early = not self._validated()  # by the minutes
        if early:
            self._validate(validation)
        if early or self.progress.step > resumed:  # a state that is as it was read is no news to who watches its file
            self._save()
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(self.best[name])
        return self.progress

    def _validated(self) -> bool:
        """Whether the last validation, or what stands for one without rows, was after the last step."""
        last = self.progress.validation[-1][0] if self.progress.validation else self.progress.best_step
        return last == self.progress.step

    def _out_of_time(self) -> bool:
        return self.schedule.minutes is not None and self.progress.seconds >= 60 * self.schedule.minutes

    def _step(self, rows: Sequence[EncodedRow], step: int) -> float:
        torch.manual_seed((self.seed << 32) + step)  # dropout, if the base has any, is the same after a resumption
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(step)
        count = sum(len(row.target) for row in rows)
        summed = 0.0
        for part in _parts(rows, self.schedule.accumulation):
            loss, _ = self._loss(part)
            if not math.isfinite(loss.item()):
                raise TrainingError(
                    "a finite loss", f"{loss.item()} at step {step + 1}", "Lower --learning-rate, or check the rows."
                )
            (loss / count).backward()  # over the tokens of all parts: the gradient of the whole batch, added up
            summed += loss.item()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.schedule.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.progress.tokens += sum(map(len, rows))
        return summed / count

    def _loss(self, rows: Sequence[EncodedRow]) -> tuple[Float[Tensor, ""], int]:
        """Summed cross-entropy over the target tokens of a batch, and their number."""
        device = next(iter(self.parameters.values())).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            logits, labels = target_logits(self.model, rows, self.pad_id, device)
        summed = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        return summed, int((labels != -100).sum())

    @torch.no_grad()
    def _validate(self, rows: Sequence[EncodedRow]) -> None:
        """Mean loss per target token on held-back rows; without any, the last parameters count as the best."""
        if rows:
            loss = self._mean_loss(rows)
            self.progress.validation.append((self.progress.step, loss))
            if self.progress.best_loss is not None and loss >= self.progress.best_loss:
                return
            self.progress.best_loss = loss
        self.progress.best_step = self.progress.step
        self.best = {name: value.detach().clone() for name, value in self.parameters.items()}

    def _mean_loss(self, rows: Sequence[EncodedRow]) -> float:
        training = self.model.training
        self.model.eval()
        ordered = sorted(rows, key=len)
        sums = [self._loss(ordered[i : i + 16]) for i in range(0, len(ordered), 16)]
        self.model.train(training)
        loss = sum(value.item() for value, _ in sums) / sum(count for _, count in sums)
        if not math.isfinite(loss):
            raise TrainingError("a finite validation loss", str(loss), "Lower --learning-rate, or check the rows.")
        return loss

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {}
        for name, value in self.parameters.items():
            tensors[f"now.{name}"] = value.detach()
            tensors[f"best.{name}"] = self.best[name]
            for moment in _MOMENTS:
                if moment in self.optimiser.state[value]:
                    tensors[f"{moment}.{name}"] = self.optimiser.state[value][moment]
        write_state(self.state_file, _distinct(tensors), vars(self.progress))

    @torch.no_grad()
    def _resume(self) -> None:
        if not self.state_file.exists():
            return
        with restoring(self.state_file):
            self._restore()

    def _restore(self) -> None:
        def named(parts: tuple[str, ...]) -> dict[str, Fits]:
            return {f"{part}.{name}": like(value) for part in parts for name, value in self.parameters.items()}

        saved, tensors = read_state(self.state_file, named(_VALUES), named(_MOMENTS))
        if saved.keys() != vars(self.progress).keys():
            raise UnfitFile("the progress of other work")
        progress = _PROGRESS.validate_json(json.dumps(saved), strict=True)
        if not 0 <= progress.step <= self.schedule.steps or not progress.seconds >= 0:
            raise UnfitFile(f"step {progress.step} of {self.schedule.steps}, after {progress.seconds} seconds")
        if wild := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
            raise UnfitFile(f"NaN or infinity in {wild[0]}")
        self.progress = progress
        for name, value in self.parameters.items():
            value.copy_(tensors[f"now.{name}"])
            self.best[name] = tensors[f"best.{name}"]
            if any(f"{moment}.{name}" in tensors for moment in _MOMENTS):
                self.optimiser.state[value] = {"step": torch.tensor(float(progress.step))}
                self.optimiser.state[value] |= {m: tensors[f"{m}.{name}"].to(value.device) for m in _MOMENTS}


def save_due(step: int, saved: float) -> bool:
    """Whether a training saves its state after this step, `saved` being the moment when it last did."""
    steps, since = save_steps(), time.monotonic() - saved
    return step % steps == 0 or since > SEND_SECONDS if steps else since > SAVE_SECONDS


def _parts(rows: Sequence[EncodedRow], count: int) -> list[Sequence[EncodedRow]]:
    """The rows in so many parts of nearly equal number, none of them empty."""
    size = math.ceil(len(rows) / count)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _distinct(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses shared memory; copies are small here."""
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
