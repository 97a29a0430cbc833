"""An expert on disk and in memory: LoRA pairs, gates, instruction embedding, card."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open

from glider.errors import ExpertError
from glider.experts.card import CARD_FILE, ExpertCard
from glider.experts.peft_format import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    LoraLayout,
    read_layout,
)
from glider.experts.profile import EMBEDDED, PREFIX, Profile
from glider.experts.sites import GATE, GLIDER_WEIGHTS_FILE, INSTRUCTION, ExpertSite, MisfitError, parse_sites
from glider.files.disk import new_directory, refuse_links_out, save_tensors, sha256, write_json
from glider.files.headers import Header, read_header
from glider.files.tensor_file import TensorFile
from glider.shapes import Float, Tensor

EXPERT_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, GLIDER_WEIGHTS_FILE, CARD_FILE)
_AGAIN = "Get the expert anew; the file is damaged or not an expert's."


@runtime_checkable
class ExpertLike(Protocol):
    """What a layer needs of an expert: LoRA pairs by site. An `Expert` has them on disk, a merged one in memory."""

    @property
    def name(self) -> str: ...
    @property
    def sites(self) -> Mapping[str, ExpertSite]: ...
    def factors(self, site: str) -> tuple[Float[Tensor, "R D"], Float[Tensor, "O R"]]: ...
    def scaling(self, site: str) -> float: ...


class Expert:
    """One expert, opened from its directory. Tensors stay in the memory-mapped files until asked for."""

    def __init__(
        self, name: str, directory: Path, card: ExpertCard, layout: LoraLayout, sites: Mapping[str, ExpertSite]
    ):
        self.name, self.directory = name, directory
        self.card, self.layout, self.sites = card, layout, sites
        self._opened: TensorFile | None = None
        self._due: str | None = None  # what the adapter's file is to be checked against when it is first read
        self._opening = threading.Lock()  # several threads may ask for the first pair

    def __getstate__(self) -> dict[str, Any]:
        """All but the open files: another process opens its own."""
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_opening", "_extra")}
        return {**kept, "_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opening=threading.Lock())

    @classmethod
    def open(cls, directory: Path | str, name: str | None = None) -> "Expert":
        """Open and check structure: files, card, adapter settings, tensor names and shapes.

        `name` is what the expert is called here, by default as its card says. Raises `ExpertError` naming the file.
        Values are checked by `verify`.
        """
        directory = Path(directory)
        refuse_links_out(directory, EXPERT_FILES)
        card = ExpertCard.read(directory)
        layout = read_layout(directory)
        adapter, extra = (read_header(directory / file) for file in (ADAPTER_WEIGHTS_FILE, GLIDER_WEIGHTS_FILE))
        sites = _sites_of(directory, adapter, extra)
        _check_agreement(directory, card, layout, sites, extra)
        return cls(name or card.name, directory, card, layout, sites)

    def renamed(self, name: str) -> "Expert":
        """The same files under another name."""
        return Expert(name, self.directory, self.card, self.layout, self.sites)

    def factors(self, site: str) -> tuple[Float[Tensor, "R D"], Float[Tensor, "O R"]]:
        """The LoRA pair `(A, B)` at a site, in the dtype of the file."""
        prefix = f"base_model.model.{site}"
        a, b = self._adapter.read((f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"))
        return a, b

    def release(self) -> None:
        """Give back the memory that reading LoRA pairs took; they are read again when somebody asks."""
        if (opened := self._opened) is not None:
            opened.release()

    def scaling(self, site: str) -> float:
        """What the product `B A` is multiplied by."""
        return self.layout.scaling(site)

    def gate(self, site: str) -> Float[Tensor, " D"] | None:
        """The gate at a site, or None where the expert has none."""
        return self._extra.get_tensor(site + GATE) if self.sites[site].has_gate else None

    @cached_property
    def instruction(self) -> Float[Tensor, " G"] | None:
        """The instruction embedding, or None where the expert has no description."""
        return self._extra.get_tensor(INSTRUCTION) if INSTRUCTION in self._extra.keys() else None  # noqa: SIM118

    @cached_property
    def profile(self) -> Profile | None:
        """What the expert keeps of its training inputs, or None where it has no profile."""
        names = [name for name in self._extra.keys() if name.startswith(PREFIX)]  # noqa: SIM118
        return Profile.of_tensors({name: self._extra.get_tensor(name) for name in names}) if names else None

    @property
    def vectors(self) -> dict[str, Tensor]:
        """Everything in `glider.safetensors`: gates, instruction embedding, profile."""
        return {name: self._extra.get_tensor(name) for name in self._extra.keys()}  # noqa: SIM118

    def verify(self, hashes: Mapping[str, str] | None = None, adapter: bool = True) -> None:
        """Check every file against its hash (where given) and every value for being finite.

        Without `adapter` the LoRA pairs, which are most of the bytes, are checked when the first of them is read, or
        now where one was read before or their hash is not given.
        """
        weights = (ADAPTER_WEIGHTS_FILE, GLIDER_WEIGHTS_FILE)
        if adapter or self._opened is not None or ADAPTER_WEIGHTS_FILE not in (hashes or {}):
            self._due = None
            self._check(hashes or {}, weights)
            return
        self._due = (hashes or {}).get(ADAPTER_WEIGHTS_FILE)
        others = {file: wanted for file, wanted in (hashes or {}).items() if file != ADAPTER_WEIGHTS_FILE}
        self._check(others, weights[1:])

    def _check(self, hashes: Mapping[str, str], weights: Sequence[str]) -> None:
        for file, wanted in hashes.items():
            path = self.directory / file
            if not path.is_file():
                raise ExpertError(f"{path} of expert {self.name}", "no such file", "Get the expert anew.")
            if (got := sha256(path)) != wanted:
                raise ExpertError(
                    f"{path} of expert {self.name} unchanged since it joined the pool (sha256 {wanted[:12]})",
                    f"sha256 {got[:12]}",
                    "Get the file anew, or remove the expert and add it again if you changed it on purpose.",
                )
        for file in weights:
            if key := TensorFile(self.directory / file).not_finite():
                raise ExpertError(
                    f"finite weights in {self.directory / file} of expert {self.name}",
                    f"NaN or infinity in {key}",
                    "The expert is broken; train it again or leave it out.",
                )

    @property
    def _adapter(self) -> TensorFile:
        """The adapter's file, opened once, after the check that is due."""
        if (opened := self._opened) is not None:
            return opened
        with self._opening:
            if self._opened is None:
                if self._due is not None:
                    self._check({ADAPTER_WEIGHTS_FILE: self._due}, (ADAPTER_WEIGHTS_FILE,))
                    self._due = None
                self._opened = TensorFile(self.directory / ADAPTER_WEIGHTS_FILE)
            return self._opened

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
    profile: Profile | None = None,
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
        extra = {site + GATE: gate.detach().to("cpu", dtype).contiguous() for site, gate in gates.items()}
        if instruction is not None:
            extra[INSTRUCTION] = instruction.detach().to("cpu", torch.float32).contiguous()
        if profile is not None:
            extra |= profile.tensors()
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


def _sites_of(directory: Path, adapter: Header, extra: Header) -> Mapping[str, ExpertSite]:
    try:
        return parse_sites(adapter, extra)
    except MisfitError as fault:
        raise ExpertError(f"{fault.wanted} in {directory / fault.file}", fault.got, _AGAIN) from fault


def _check_agreement(
    directory: Path, card: ExpertCard, layout: LoraLayout, sites: Mapping[str, ExpertSite], extra: Header
) -> None:
    """The files say the same: ranks as the adapter's settings, the instruction as wide as the embedder's vectors."""
    for name, site in sites.items():
        if site.rank != layout.rank_at(name):
            raise ExpertError(
                f"rank {layout.rank_at(name)} at {name}, as {directory / ADAPTER_CONFIG_FILE} says",
                f"rank {site.rank} in {ADAPTER_WEIGHTS_FILE}",
                "The files do not belong together; get the expert anew.",
            )
    width = extra.shapes.get(INSTRUCTION)
    wanted = card.embedder and (card.embedder.dimension,)
    embedded = {extra.shapes[PREFIX + part][-1:] for part in EMBEDDED if PREFIX + part in extra.shapes}
    if embedded - {wanted}:
        raise ExpertError(
            f"profile embeddings of width {wanted} in {directory / GLIDER_WEIGHTS_FILE}, as its {CARD_FILE} says",
            f"{sorted(embedded)}",
            "The files do not belong together; make the profile again.",
        )
    if width != wanted:
        raise ExpertError(
            f"an instruction of shape {wanted} in {directory / GLIDER_WEIGHTS_FILE}, as its {CARD_FILE} says",
            f"{width}",
            "The files do not belong together; describe the expert again.",
        )
