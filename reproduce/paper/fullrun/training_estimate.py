"""What a training will cost, by formulas that stand here; nothing of it was measured on a GPU.

Memory of activations is that of a transformer block in 16 bit, 34 s b h + 5 a s^2 b bytes (arXiv 2205.05198, section
4.1); recomputed, a block keeps its input alone, 2 s b h.
"""

import math
from dataclasses import dataclass
from typing import Any

from fullrun.estimate import DTYPE_BYTES, GB, STORED_BYTES, T5_XL, Assumptions, data_gb, hours_of
from fullrun.plan import TaskSource
from fullrun.training_plan import CategorySource, FlanSource, Training
from fullrun.training_rows import SUBMIXES

TRAINED_BYTES = 4 + 4 + 8 + 4  # of a trained parameter: itself, its gradient, two moments, the best so far; float32
LOGIT_BYTES = 2 + 4 + 4  # of a logit: as computed, in float32, its gradient
SUBMIX_ROWS = {"flan2021": 5_400_000, "dialog": 560_000}  # assumed
SUBMIX_ROW_BYTES = 1_000  # assumed, compressed
CLONE_GB = 5.0  # of natural-instructions, assumed


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a Llama model; by default LLaMA-3-8B."""

    width: int = 4096
    feed_forward: int = 14336
    heads: int = 32
    keys: int = 1024  # width of keys and of values
    layers: int = 32
    vocabulary: int = 128256
    rank: int = 16

    @property
    def sites(self) -> list[tuple[int, int]]:
        """(D, O) of the linear layers of a block: q, k, v, o, gate, up, down."""
        d, k, f = self.width, self.keys, self.feed_forward
        return [(d, d), (d, k), (d, k), (d, d), (d, f), (d, f), (f, d)]

    @property
    def base_parameters(self) -> int:
        """Blocks with their two norms, embeddings and head (not tied), the last norm."""
        block = sum(i * o for i, o in self.sites) + 2 * self.width
        return self.layers * block + 2 * self.vocabulary * self.width + self.width

    @property
    def lora_parameters(self) -> int:
        return self.layers * sum(self.rank * (i + o) for i, o in self.sites)

    @property
    def gate_parameters(self) -> int:
        return self.layers * sum(i for i, _ in self.sites)


LLAMA_8B = DecoderShape()
BLOCKS = {"t5-xl": 2 * T5_XL.layers, "llama-8b": LLAMA_8B.layers}


def shape_of(training: Training) -> Any:
    """The sizes of its base."""
    return T5_XL if training.shape == "t5-xl" else LLAMA_8B


def training_tokens(training: Training) -> float:
    """Of all experts, both stages: rows of the steps by their assumed lengths."""
    settings = training.settings
    rows = (settings.steps + settings.gate_steps) * settings.batch_size
    return sum(rows * min(task.assumed.input + task.assumed.target, settings.max_tokens) for task in _tasks(training))


def passes(training: Training) -> int:
    """Passes of the base for a token: forward, backward to the inputs (the base's own weights get no gradient), and
    forward again where activations are recomputed."""
    return 3 if training.settings.checkpointing else 2


def activations_gb(training: Training) -> float:
    """Of the largest part of a step: rows of the longest kind."""
    settings, shape, blocks = training.settings, shape_of(training), BLOCKS[training.shape]
    rows, length = math.ceil(settings.batch_size / settings.accumulation), settings.max_tokens
    block = 34 * rows * length * shape.width + 5 * shape.heads * length**2 * rows
    stored = blocks * 2 * rows * length * shape.width + block if settings.checkpointing else blocks * block
    answer = max(task.assumed.target for task in _tasks(training))
    return (stored + LOGIT_BYTES * rows * answer * shape.vocabulary) / GB


def training_memory_gb(training: Training) -> float:
    """The base, what is trained, and activations."""
    shape = shape_of(training)
    weights = DTYPE_BYTES[training.dtype] * shape.base_parameters + TRAINED_BYTES * shape.lora_parameters
    return weights / GB + activations_gb(training)


def training_download_gb(training: Training) -> float:
    """The base as it is stored, and of the data what its sources make one fetch."""
    shape = shape_of(training)
    stored = STORED_BYTES if training.shape == "t5-xl" else 2
    return stored * shape.base_parameters / GB + training_data_gb(training)


def training_data_gb(training: Training) -> float:
    """Of the data alone: splits of P3 up to the rows that are used, whole submixes, the clone."""
    tasks = _tasks(training)
    rows = sum(data_gb(task, min(training.most, task.available)) for task in tasks if isinstance(task, TaskSource))
    submixes = {task.submix for task in tasks if isinstance(task, FlanSource)}
    rows += sum(SUBMIX_ROWS[name] * SUBMIX_ROW_BYTES / GB for name in SUBMIXES if name in submixes)
    return rows + (CLONE_GB if any(isinstance(task, CategorySource) for task in tasks) else 0.0)


def training_pool_gb(training: Training) -> float:
    """The experts on disk."""
    shape = shape_of(training)
    return len(training.tasks) * (STORED_BYTES * shape.lora_parameters + 2 * shape.gate_parameters) / GB


def training_json(training: Training, assumed: Assumptions) -> dict[str, Any]:
    """The estimates as plain values."""
    tokens, settings = training_tokens(training), training.settings
    estimate: dict[str, Any] = {"config": training.config, "title": training.title, "base": training.base}
    estimate |= {"experts": len(training.tasks), "rows": training.most, "tokens": round(tokens)}
    estimate |= {"hours": hours_of(passes(training) * tokens, assumed), "passes": passes(training)}
    estimate |= {"memory_gb": round(training_memory_gb(training), 1), "command": training.command}
    estimate |= {
        "download_gb": round(training_download_gb(training), 1),
        "pool_gb": round(training_pool_gb(training), 1),
    }
    estimate |= {"data_gb": round(training_data_gb(training), 1), "dtype": training.dtype}
    names = ("steps", "gate_steps", "batch_size", "accumulation", "checkpointing", "precision")
    return estimate | {"settings": {name: getattr(settings, name) for name in names}}


def print_training(cost: dict[str, Any]) -> None:
    """For a person."""
    settings = cost["settings"]
    print(f"\n{cost['title']}")
    print(f"  {cost['base']} in {cost['dtype']}, {settings['precision']} arithmetic: {cost['memory_gb']} GB of memory,")
    print(f"  {cost['download_gb']} GB to download ({cost['data_gb']} of data), {cost['pool_gb']} GB as a pool")
    parts = f"{settings['batch_size']} rows a step in {settings['accumulation']} parts"
    recomputed = ", activations recomputed" if settings["checkpointing"] else ""
    print(
        f"  {settings['steps']} + {settings['gate_steps']} steps, {parts}{recomputed}; up to {cost['rows']} rows a task"
    )
    hours = (
        ""
        if cost["hours"] is None
        else f": {cost['hours']:.1f} h in all, {cost['hours'] / cost['experts']:.2f} an expert"
    )
    print(f"  {cost['experts']} experts, {cost['tokens'] / 1e6:.0f} M tokens in {cost['passes']} passes{hours}")
    print(f"    {cost['command']}")


def _tasks(training: Training) -> list[Any]:
    return list(training.tasks.values())
