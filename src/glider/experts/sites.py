"""The sites of an expert, parsed from the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from glider.experts.peft_format import ADAPTER_WEIGHTS_FILE, parse_key
from glider.experts.profile import PREFIX, misfit
from glider.files.dtypes import torch_dtype, wider
from glider.files.headers import Header

if TYPE_CHECKING:
    import torch

GLIDER_WEIGHTS_FILE = "glider.safetensors"
GATE = ".gate"
INSTRUCTION = "instruction"


@dataclass(frozen=True)
class ExpertSite:
    """The shapes of an expert at one site, known from file headers alone."""

    rank: int
    in_features: int
    out_features: int
    has_gate: bool
    stored: str  # the dtype of the pair in the file, by its name there; the wider one where A and B differ

    @property
    def dtype(self) -> torch.dtype:
        """That dtype in PyTorch."""
        return torch_dtype(self.stored)


class MisfitError(Exception):
    """Tensors that do not form an expert: the file, what was expected and what was got."""

    def __init__(self, file: str, expected: str, got: str):
        super().__init__(f"{file}: wanted {expected}, got {got}")
        self.file, self.expected, self.got = file, expected, got


@lru_cache(maxsize=1024)
def parse_sites(adapter: Header, extra: Header) -> Mapping[str, ExpertSite]:
    """Sites in the order of their names in the adapter file; raises `MisfitError`.

    Experts of one shape share their headers, and so the result.
    """
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    dtypes: dict[str, str] = {}
    for key, shape in adapter.shapes.items():
        if (parsed := parse_key(key)) is None:
            raise MisfitError(ADAPTER_WEIGHTS_FILE, "only LoRA pairs on linear layers", f"the tensor {key}")
        site, stored = parsed[0], adapter.dtypes[key]
        pairs.setdefault(site, {})[parsed[1]] = shape
        dtypes[site] = wider(dtypes.get(site, stored), stored)
    if not pairs:
        raise MisfitError(ADAPTER_WEIGHTS_FILE, "LoRA pairs", "no tensor")
    sites = {site: _parse_pair(site, pair, extra, dtypes[site]) for site, pair in pairs.items()}
    if fault := misfit(extra.shapes, extra.dtypes):
        raise MisfitError(GLIDER_WEIGHTS_FILE, "the tensors of a profile", fault)
    for key, shape in extra.shapes.items():
        if key.startswith(PREFIX):
            continue
        gate = key.endswith(GATE) and key.removesuffix(GATE) in sites
        if not gate and (key != INSTRUCTION or len(shape) != 1 or shape[0] == 0):
            raise MisfitError(
                GLIDER_WEIGHTS_FILE,
                "gates of adapted sites, one instruction vector and a profile",
                f"the tensor {key} of shape {shape}",
            )
    return sites


def _parse_pair(site: str, pair: Mapping[str, tuple[int, ...]], extra: Header, stored: str) -> ExpertSite:
    a, b, gate = pair.get("A"), pair.get("B"), extra.shapes.get(site + GATE)
    if a is None or b is None or len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in (*a, *b):
        raise MisfitError(ADAPTER_WEIGHTS_FILE, f"a pair A (R, D), B (O, R) for {site}", f"A {a}, B {b}")
    if gate is not None and gate != (a[1],):
        raise MisfitError(GLIDER_WEIGHTS_FILE, f"a gate of shape ({a[1]},) for {site}", f"{gate}")
    return ExpertSite(rank=a[0], in_features=a[1], out_features=b[0], has_gate=gate is not None, stored=stored)
