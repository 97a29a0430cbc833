"""The profile: what an expert keeps of its training inputs, so that a pool can tell its queries without an LLM.

Counts of hashed word n-grams and the mean embedding of some training inputs, and the same of a few inputs held back,
one by one, on which a pool is calibrated. Shapes are the same for every expert of an embedder, so that the headers of
a large pool's files stay equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from glider.files.dtypes import FLOATING, WHOLE, torch_dtype

if TYPE_CHECKING:
    from glider.shapes import Float, Int, Tensor

PREFIX = "profile."
ROWS = 64  # training inputs counted
HELD_BACK = 24  # inputs kept for calibration
MOST_GRAMS = 12288
MOST_QUERY_GRAMS = 512
EMBEDDED = ("inputs", "held_back_inputs", "stored_inputs")
WIDTHS = {**dict.fromkeys(EMBEDDED, "inputs"), "hidden": "hidden", "held_back_hidden": "hidden"}  # alike
_AXES = {"grams": 1, "counts": 1, "held_back": 2, "inputs": 1, "held_back_inputs": 2}
_AXES |= {"hidden": 1, "held_back_hidden": 2, "stored_inputs": 2}
_DTYPES = {"grams": "I32", "counts": "U8", "held_back": "I32"}


@dataclass(frozen=True)
class Profile:
    """Hashed n-grams as signed 32-bit integers, 0 where a row is shorter than its room."""

    grams: Int[Tensor, " N"]  # the expert's n-grams, sorted
    counts: Int[Tensor, " N"]  # uint8: inputs that hold each
    held_back: Int[Tensor, "Q L"]  # n-grams of each held-back input
    inputs: Float[Tensor, " G"] | None = None  # mean embedding of the training inputs, unit length
    held_back_inputs: Float[Tensor, "Q G"] | None = None  # embeddings of the held-back inputs
    hidden: Float[Tensor, " H"] | None = None  # mean hidden state of the base on the training inputs
    held_back_hidden: Float[Tensor, "Q H"] | None = None  # and on each held-back input
    stored_inputs: Float[Tensor, "N G"] | None = None  # embeddings of single training inputs, for retrieval by examples

    @property
    def known(self) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
        """The n-grams (int64) and their counts, without the filling."""
        real = self.counts > 0
        return _unsigned(self.grams[real]), self.counts[real].long()

    @property
    def has_words(self) -> bool:
        """Whether it knows any n-gram."""
        return bool((self.counts > 0).any())

    @property
    def queries(self) -> tuple[Int[Tensor, " _"], ...]:
        """The n-grams (int64) of each held-back input."""
        return tuple(_unsigned(row[row != 0]) for row in self.held_back)

    def tensors(self) -> dict[str, Tensor]:
        """By their names in `glider.safetensors`."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {PREFIX + name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Profile:
        """From the tensors of a file, whatever their dtypes there."""
        parts = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        dtypes = {part: torch_dtype(name) for part, name in _DTYPES.items()}
        return cls(**{part: tensor.to(dtypes.get(part, tensor.dtype)) for part, tensor in parts.items()})

    @classmethod
    def of(
        cls,
        training: Sequence[Int[Tensor, " _"]],
        held_back: Sequence[Int[Tensor, " _"]],
        inputs: Float[Tensor, "N G"] | None = None,
        held_back_inputs: Float[Tensor, "Q G"] | None = None,
        hidden: Float[Tensor, "N H"] | None = None,
        held_back_hidden: Float[Tensor, "Q H"] | None = None,
        stored_inputs: Float[Tensor, "N G"] | None = None,
    ) -> Profile:
        """Count the n-grams of training inputs; beyond 12,288 distinct ones those of the fewest inputs go."""
        import torch

        grams, counts = torch.cat([torch.zeros(0, dtype=torch.int64), *training]).unique(return_counts=True)
        if len(grams) > MOST_GRAMS:
            frequent = counts.sort(descending=True, stable=True).indices[:MOST_GRAMS].sort().values
            grams, counts = grams[frequent], counts[frequent]
        rows = torch.zeros(len(held_back), MOST_QUERY_GRAMS, dtype=torch.int32)
        for row, query in zip(rows, held_back, strict=True):
            query = query[torch.linspace(0, len(query) - 1, min(len(query), MOST_QUERY_GRAMS)).long()]
            row[: len(query)] = _signed(query)
        return cls(
            _filled(_signed(grams), MOST_GRAMS),
            _filled(counts.clamp(max=255).to(torch.uint8), MOST_GRAMS),
            rows,
            None if inputs is None else torch.nn.functional.normalize(inputs.float().mean(dim=0), dim=-1),
            None if held_back_inputs is None else held_back_inputs.half(),
            None if hidden is None else hidden.float().mean(dim=0),
            None if held_back_hidden is None else held_back_hidden.half(),
            None if stored_inputs is None else stored_inputs.half(),
        )


def misfit(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> str | None:
    """What keeps tensors of these names and shapes from being a profile; None if nothing does, or if there is none."""
    parts = {name.removeprefix(PREFIX): shape for name, shape in shapes.items() if name.startswith(PREFIX)}
    for part, shape in parts.items():
        if len(shape) != _AXES.get(part) or 0 in shape[-1:]:
            return f"the tensor {PREFIX}{part} of shape {shape}"
        dtype = dtypes[PREFIX + part]
        if dtype not in (WHOLE if part in _DTYPES else FLOATING):
            return f"the tensor {PREFIX}{part} of {dtype}"
    if parts and (missing := {"grams", "counts", "held_back"} - parts.keys()):
        return f"a profile without {', '.join(sorted(missing))}"
    if parts and parts["grams"] != parts["counts"]:
        return f"{parts['grams']} n-grams and {parts['counts']} counts"
    for part in ("held_back_inputs", "held_back_hidden"):
        if part in parts and parts[part][0] != parts["held_back"][0]:
            return f"{parts['held_back'][0]} held-back inputs and {parts[part][0]} rows of {part}"
    widths: dict[str, int] = {}
    for part, kind in WIDTHS.items():
        if part in parts and widths.setdefault(kind, parts[part][-1]) != parts[part][-1]:
            return f"{part} of width {parts[part][-1:]} beside {(widths[kind],)}"
    return None


def _signed(grams: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    import torch

    return torch.where(grams >= 1 << 31, grams - (1 << 32), grams).to(torch.int32)


def _unsigned(grams: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    return grams.long() & 0xFFFFFFFF


def _filled(values: Tensor, length: int) -> Tensor:
    import torch

    return torch.cat([values, values.new_zeros(length - len(values))])
