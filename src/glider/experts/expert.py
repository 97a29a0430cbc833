"""An expert on disk and in memory: LoRA pairs, gates, instruction embedding, card."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from glider.errors import ExpertError
from glider.experts.card import CARD_FILE, ExpertCard
from glider.experts.disk import new_directory, save_tensors, sha256, write_json
from glider.experts.headers import read_shapes
from glider.experts.peft_format import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    LoraLayout,
    parse_key,
    read_layout,
)
from glider.shapes import Float, Tensor

GLIDER_WEIGHTS_FILE = "glider.safetensors"
EXPERT_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, GLIDER_WEIGHTS_FILE, CARD_FILE)
_GATE = ".gate"
_INSTRUCTION = "instruction"
_AGAIN = "Get the expert anew; the file is damaged."


@dataclass(frozen=True)
class ExpertSite:
    """What an expert holds at one site, known from file headers alone."""

    rank: int
    in_features: int
    out_features: int
    has_gate: bool


class Expert:
    """One expert, opened from its directory. Tensors stay in the memory-mapped files until asked for."""

    def __init__(self, directory: Path, card: ExpertCard, layout: LoraLayout, sites: Mapping[str, ExpertSite]):
        self.directory, self.card, self.layout, self.sites = directory, card, layout, sites

    @classmethod
    def open(cls, directory: Path | str) -> "Expert":
        """Open and check structure: files, card, adapter settings, tensor names and shapes.

        Raises `ExpertError` naming the file. Values are checked by `verify`.
        """
        directory = Path(directory)
        card = ExpertCard.read(directory)
        layout = read_layout(directory)
        shapes = read_shapes(directory / ADAPTER_WEIGHTS_FILE)
        extra = read_shapes(directory / GLIDER_WEIGHTS_FILE)
        return cls(directory, card, layout, _parse_sites(directory, shapes, extra))

    @property
    def name(self) -> str:
        return self.card.name

    def factors(self, site: str) -> tuple[Float[Tensor, "R D"], Float[Tensor, "O R"]]:
        """The LoRA pair `(A, B)` at a site, in the dtype of the file."""
        prefix = f"base_model.model.{site}"
        return (
            self._adapter.get_tensor(f"{prefix}.lora_A.weight"),
            self._adapter.get_tensor(f"{prefix}.lora_B.weight"),
        )

    def scaling(self, site: str) -> float:
        """What the product `B A` is multiplied by."""
        return self.layout.scaling(site)

    def gate(self, site: str) -> Float[Tensor, " D"] | None:
        """The gate at a site, or None where the expert has none."""
        return self._extra.get_tensor(site + _GATE) if self.sites[site].has_gate else None

    @cached_property
    def instruction(self) -> Float[Tensor, " G"] | None:
        """The instruction embedding, or None where the expert has no description."""
        return self._extra.get_tensor(_INSTRUCTION) if _INSTRUCTION in self._extra.keys() else None  # noqa: SIM118

    def verify(self, hashes: Mapping[str, str] | None = None) -> None:
        """Check every file against its hash (where given) and every value for being finite."""
        for file, wanted in (hashes or {}).items():
            if (got := sha256(self.directory / file)) != wanted:
                raise ExpertError(
                    f"{self.directory / file} of expert {self.name} unchanged since it joined the pool "
                    f"(sha256 {wanted[:12]})",
                    f"sha256 {got[:12]}",
                    "Get the file anew, or remove the expert and add it again if you changed it on purpose.",
                )
        for path, tensors in ((ADAPTER_WEIGHTS_FILE, self._adapter), (GLIDER_WEIGHTS_FILE, self._extra)):
            for key in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                if not torch.isfinite(tensors.get_tensor(key)).all():
                    raise ExpertError(
                        f"finite weights in {self.directory / path} of expert {self.name}",
                        f"NaN or infinity in {key}",
                        "The expert is broken; train it again or leave it out.",
                    )

    @cached_property
    def _adapter(self) -> Any:
        with _reading(self.directory / ADAPTER_WEIGHTS_FILE) as path:
            return safe_open(path, framework="pt")

    @cached_property
    def _extra(self) -> Any:
        with _reading(self.directory / GLIDER_WEIGHTS_FILE) as path:
            return safe_open(path, framework="pt")


def write_expert(
    directory: Path,
    card: ExpertCard,
    peft_config: Any,
    lora: Mapping[str, Tensor],
    gates: Mapping[str, Float[Tensor, " D"]],
    instruction: Float[Tensor, " G"] | None,
    dtype: torch.dtype = torch.bfloat16,
) -> Expert:
    """Write a whole expert directory atomically and open it.

    `lora` holds PEFT's tensors under PEFT's names, `gates` maps site to gate. LoRA pairs and gates are stored in
    `dtype`, the instruction embedding in float32 (its cosine decides between near neighbours).
    """
    with new_directory(directory) as partial:
        peft_config.save_pretrained(str(partial))
        _settle_order(partial / ADAPTER_CONFIG_FILE)
        save_tensors(
            {key: value.detach().to("cpu", dtype).contiguous() for key, value in lora.items()},
            partial / ADAPTER_WEIGHTS_FILE,
            metadata={"format": "pt"},
        )
        extra = {site + _GATE: gate.detach().to("cpu", dtype).contiguous() for site, gate in gates.items()}
        if instruction is not None:
            extra[_INSTRUCTION] = instruction.detach().to("cpu", torch.float32).contiguous()
        save_tensors(extra, partial / GLIDER_WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(partial / CARD_FILE, card.model_dump(mode="json"))
        Expert.open(partial).verify()
    return Expert.open(directory)


def _settle_order(path: Path) -> None:
    """PEFT writes its set of target modules in random order; sorted, the same training writes the same file."""
    config = json.loads(path.read_text("utf8"))
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    write_json(path, config)


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    try:
        yield path
    except FileNotFoundError:
        raise ExpertError(f"the file {path}", "no such file", "Get the expert anew; it is incomplete.") from None
    except SafetensorError as fault:
        raise ExpertError(f"a safetensors file in {path}", f"a damaged one ({fault})", _AGAIN) from fault


def _parse_sites(directory: Path, shapes: Mapping[str, tuple], extra: Mapping[str, tuple]) -> dict[str, ExpertSite]:
    pairs: dict[str, dict[str, tuple]] = {}
    for key, shape in shapes.items():
        if (parsed := parse_key(key)) is None:
            raise ExpertError(
                f"only LoRA pairs in {directory / ADAPTER_WEIGHTS_FILE}",
                f"the tensor {key}",
                "Only plain LoRA adapters on linear layers can be pooled.",
            )
        pairs.setdefault(parsed[0], {})[parsed[1]] = shape
    if not pairs:
        raise ExpertError(f"LoRA pairs in {directory / ADAPTER_WEIGHTS_FILE}", "no tensor", _AGAIN)
    sites = {site: _parse_pair(directory, site, pair, extra) for site, pair in pairs.items()}
    for key, shape in extra.items():
        known = (key == _INSTRUCTION and len(shape) == 1) or key.removesuffix(_GATE) in sites
        if not known:
            raise ExpertError(
                f"gates of adapted sites and one instruction vector in {directory / GLIDER_WEIGHTS_FILE}",
                f"the tensor {key} of shape {shape}",
                "Get the expert anew; its files do not belong together.",
            )
    return sites


def _parse_pair(directory: Path, site: str, pair: Mapping[str, tuple], extra: Mapping[str, tuple]) -> ExpertSite:
    a, b, gate = pair.get("A"), pair.get("B"), extra.get(site + _GATE)
    if a is None or b is None or len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise ExpertError(
            f"a pair A (R, D), B (O, R) for {site} in {directory / ADAPTER_WEIGHTS_FILE}", f"A {a}, B {b}", _AGAIN
        )
    if gate is not None and gate != (a[1],):
        raise ExpertError(
            f"a gate of shape ({a[1]},) for {site} in {directory / GLIDER_WEIGHTS_FILE}",
            f"{gate}",
            "Train the gates again for this adapter.",
        )
    return ExpertSite(rank=a[0], in_features=a[1], out_features=b[0], has_gate=gate is not None)
