"""What a cell will cost, by formulas that stand here and assumptions that are printed with every estimate.

Nothing was measured on a GPU: parameters follow from the architecture, tokens from the configs' assumed lengths, and
time from a throughput that the user gives.
"""

import math
from dataclasses import dataclass

from pydantic import Field

from fullrun.plan import FEWSHOT, Cell, P3Source, PoolSource, PromptedSource, TaskSet, TaskSource
from glider.config import Config

GB = 1e9
STORED_BYTES = 4  # of a parameter in the downloads, float32
TEXT_BYTES, ID_BYTES = 4.5, 4  # of a token: its letters, its number
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Assumptions(Config):
    """What the estimate takes for granted."""

    dtype: str = "float32"  # of base and experts, as the published code loads them
    throughput: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Tokens a second, prompts and answers together, on the user's machine."""
    activations_gb: float = Field(4.0, ge=0, allow_inf_nan=False)
    """Beside the weights: activations, logits and caches of a batch."""


@dataclass(frozen=True)
class T5Shape:
    """The sizes of a T5 1.1 model; by default T5-XL, which T0-3B and FLAN-T5-XL share."""

    width: int = 2048
    feed_forward: int = 5120
    attention: int = 2048  # heads x width of a head
    heads: int = 32
    layers: int = 24  # of the encoder, and of the decoder
    vocabulary: int = 32128
    buckets: int = 32  # of relative positions
    rank: int = 16  # of the experts

    @property
    def encoder_sites(self) -> list[tuple[int, int]]:
        """(D, O) of the linear layers of an encoder block: q, k, v, o, two gated inputs, one output."""
        d, a, f = self.width, self.attention, self.feed_forward
        return [(d, a)] * 3 + [(a, d)] + [(d, f)] * 2 + [(f, d)]

    @property
    def decoder_sites(self) -> list[tuple[int, int]]:
        """Those of a decoder block: attention twice."""
        return self.encoder_sites[:4] + self.encoder_sites

    @property
    def base_parameters(self) -> int:
        """Blocks with their norms, embeddings and head (not tied), relative positions, two last norms."""
        linear = sum(i * o for i, o in self.encoder_sites + self.decoder_sites)
        norms = (2 + 3) * self.width
        ends = 2 * self.vocabulary * self.width + 2 * self.buckets * self.heads + 2 * self.width
        return self.layers * (linear + norms) + ends

    @property
    def lora_parameters(self) -> int:
        """rank * (D + O) at every linear layer but the head."""
        return self.layers * sum(self.rank * (i + o) for i, o in self.encoder_sites + self.decoder_sites)

    @property
    def gate_parameters(self) -> int:
        """D at every such layer."""
        return self.layers * sum(i for i, _ in self.encoder_sites + self.decoder_sites)

    @property
    def expert_parameters(self) -> int:
        return self.lora_parameters + self.gate_parameters


T5_XL = T5Shape()


def rows_of(tasks: TaskSet, task: TaskSource) -> int:
    """Rows that are evaluated: what is not held back, at most `most`, under one template or all, less the set apart."""
    count = task.available if task.last is None else min(task.last, task.available)
    count -= int(tasks.held_back * count)
    count -= min(FEWSHOT, count // 2) if task.train is None else 0
    count = count if tasks.most is None else min(count, tasks.most)
    return count * (_templates(task) if tasks.templates == "all" else 1)


def tokens_of_row(task: TaskSource) -> float:
    """A prompt is computed once, then each of its choices, or one answer."""
    limit = math.inf if task.max_input is None else task.max_input
    return min(task.assumed.input, limit) + max(task.assumed.choices, 1) * task.assumed.target


def tokens_of(cell: Cell, tasks: TaskSet, experts: int) -> float:
    """All tokens of a cell. The oracle evaluates every expert; LoRAHub's search reads its few rows `budget` times."""
    if cell.figure is not None:
        return tokens_of_figure(cell, tasks)
    each = {name: rows_of(tasks, task) * tokens_of_row(task) for name, task in tasks.tasks.items()}
    total = sum(each.values())
    if cell.method.router == "oracle":
        return experts * total
    if cell.method.router == "lorahub":
        budget = cell.method.settings.get("budget", 40)
        few = sum(cell.method.fewshot * (t.assumed.input + t.assumed.target) for t in tasks.tasks.values())
        return total + budget * few
    return total


def rows_of_cell(cell: Cell, tasks: TaskSet, task: TaskSource) -> int:
    """Rows of a task that a cell takes: a figure only so many."""
    rows = rows_of(tasks, task)
    return rows if cell.rows is None else min(rows, cell.rows)


def tokens_of_figure(cell: Cell, tasks: TaskSet) -> float:
    """Prompts alone, for which sites use which experts; global scores need no pass of the model."""
    if cell.figure == "scores":
        return 0.0
    lengths = {name: min(task.assumed.input, task.max_input or math.inf) for name, task in tasks.tasks.items()}
    return sum(rows_of_cell(cell, tasks, task) * lengths[name] for name, task in tasks.tasks.items())


def memory_gb(pool: PoolSource, assumed: Assumptions, shape: T5Shape = T5_XL) -> float:
    """Weights of the base, LoRA pairs and gates of all experts, and the assumed rest."""
    weights = shape.base_parameters + pool.experts * shape.expert_parameters
    return DTYPE_BYTES[assumed.dtype] * weights / GB + assumed.activations_gb


def download_gb(pool: PoolSource, shape: T5Shape = T5_XL) -> float:
    """The base, and each expert with the two copies of `embed_tokens` that the published files carry."""
    expert = shape.expert_parameters + 2 * shape.vocabulary * shape.width
    return STORED_BYTES * (shape.base_parameters + pool.experts * expert) / GB


def base_gb(shape: T5Shape = T5_XL) -> float:
    """The base as it is stored."""
    return STORED_BYTES * shape.base_parameters / GB


def data_gb(task: TaskSource, rows: int) -> float:
    """So many rows of a task's data sets, uncompressed: texts, of P3 token ids beside them, of each template anew."""
    tokens = task.assumed.input + task.assumed.target
    each = (TEXT_BYTES + (ID_BYTES if isinstance(task, P3Source) else 0)) * tokens
    files = len(task.templates) if isinstance(task, P3Source) else 1
    return files * rows * each / GB


def set_gb(tasks: TaskSet) -> float:
    """The splits that a set of tasks is evaluated on; the training splits' first rows are few."""
    return sum(data_gb(task, task.available) for task in tasks.tasks.values())


def pool_gb(pool: PoolSource, shape: T5Shape = T5_XL) -> float:
    """The imported pool on disk."""
    return STORED_BYTES * pool.experts * shape.expert_parameters / GB


def hours_of(tokens: float, assumed: Assumptions) -> float | None:
    """None without a throughput."""
    return None if assumed.throughput is None else tokens / assumed.throughput / 3600


def _templates(task: TaskSource) -> int:
    return len(task.templates) if isinstance(task, P3Source | PromptedSource) else 1
