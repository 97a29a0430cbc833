"""An expert on disk and in memory: LoRA pairs, gates, instruction embedding, card."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from glider.errors import ExpertError
from glider.experts.card import CARD_FILE, ExpertCard, read_card
from glider.experts.index import FileRecord
from glider.experts.peft_format import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    LoraLayout,
    parsed_layout,
    read_config,
)
from glider.experts.profile import EMBEDDED, PREFIX, WIDTHS, Profile
from glider.experts.sites import GATE, GLIDER_WEIGHTS_FILE, INSTRUCTION, ExpertSite, MisfitError, parse_sites
from glider.files.disk import new_directory, refuse_links_out, save_tensors, sha256, write_json
from glider.files.headers import Header
from glider.files.replacing import recover
from glider.files.tensor_file import LARGEST_VALUE, TensorFile, sane

if TYPE_CHECKING:
    import torch

    from glider.shapes import Float, Tensor

EXPERT_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, GLIDER_WEIGHTS_FILE, CARD_FILE)
TENSOR_FILES = (ADAPTER_WEIGHTS_FILE, GLIDER_WEIGHTS_FILE)
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
    """One expert, opened from its directory. Tensors stay in the files until asked for, each checked as it is read.

    Made by `Expert.open`.

    Arguments:
        name: Its name in its pool.
        directory: The directory of its files.
        card: The content of `card.json`.
        layout: Ranks, alphas and scalings of the adapter's settings.
        sites: Its shapes at each site, by the site's name.
        files: Its opened tensor files, by name.
        records: The pool's records of its files, by name.
        read: SHA-256 of the JSON files that were read, by name.

    Raises: methods raise `ExpertError` naming the file that changed or is not finite.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        card: ExpertCard,
        layout: LoraLayout,
        sites: Mapping[str, ExpertSite],
        files: Mapping[str, TensorFile],
        records: Mapping[str, FileRecord],
        read: Mapping[str, str],
    ):
        self.name, self.directory = name, directory
        self.card, self.layout, self.sites = card, layout, sites
        self._files, self._records = dict(files), records
        self._read = read  # sha256 of the JSON files whose content this expert is
        self._hashes: dict[str, str] = {}  # of the tensor files, as `verify` was told them
        self._touched = False  # whether pairs were read
        self._finite_due = False  # whether pairs are to be looked at for being finite as they are read
        self._opening = threading.Lock()  # several threads may ask for the first tensor of another process's expert

    def __getstate__(self) -> dict[str, Any]:
        """All but the open files: another process opens its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_opening"} | {"_files": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opening=threading.Lock())

    @classmethod
    def open(
        cls,
        directory: Path | str,
        name: str | None = None,
        records: Mapping[str, FileRecord] | None = None,
        signed: bool = False,
    ) -> Expert:
        """Open and check structure: files, card, adapter settings, tensor names and shapes.

        `name` is the expert's name here, by default its card's; `records` are a pool's records of its files. With
        `signed` records only what they vouch for is accepted. Raises `ExpertError` naming the
        file. Values are checked by `verify`.
        """
        directory = Path(directory)
        recover(directory)
        refuse_links_out(directory, EXPERT_FILES)
        contents = {CARD_FILE: read_card(directory), ADAPTER_CONFIG_FILE: read_config(directory)}
        read = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
        card = ExpertCard.parsed(contents[CARD_FILE], directory / CARD_FILE)
        name, records = name or card.name, records or {}
        if signed:
            _require_hashes(directory, name, read, records)
        layout = parsed_layout(contents[ADAPTER_CONFIG_FILE], directory / ADAPTER_CONFIG_FILE)
        files = {file: _tensor_file(directory, file, name, records) for file in TENSOR_FILES}
        adapter, extra = (files[file].header for file in TENSOR_FILES)
        sites = _sites_of(directory, adapter, extra)
        _check_agreement(directory, card, layout, sites, extra)
        opened = cls(name, directory, card, layout, sites, files, records, read)
        if signed and not all(record.tensors for file, record in records.items() if file in TENSOR_FILES):
            opened.verify({file: record.sha256 for file, record in records.items()})  # of an older format: whole files
        return opened

    def renamed(self, name: str) -> Expert:
        """The same files under another name."""
        parts = (self.directory, self.card, self.layout, self.sites, self._files, self._records, self._read)
        return Expert(name, *parts)

    def factors(self, site: str) -> tuple[Float[Tensor, "R D"], Float[Tensor, "O R"]]:
        """The LoRA pair `(A, B)` at a site, in the dtype of the file."""
        self._touched = True
        prefix = f"base_model.model.{site}"
        names = (f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight")
        a, b = self._file(ADAPTER_WEIGHTS_FILE).read(names)
        if self._finite_due:
            for name, factor in zip(names, (a, b), strict=True):
                if not sane(factor):
                    raise self._not_finite(ADAPTER_WEIGHTS_FILE, name)
        return a, b

    def scaling(self, site: str) -> float:
        """The factor of the product `B A`."""
        return self.layout.scaling(site)

    def gate(self, site: str) -> Float[Tensor, " D"] | None:
        """The gate at a site, or None where the expert has none."""
        return self._vector(site + GATE) if self.sites[site].has_gate else None

    @cached_property
    def instruction(self) -> Float[Tensor, " G"] | None:
        """The instruction embedding, or None where the expert has no description."""
        return self._vector(INSTRUCTION) if INSTRUCTION in self._file(GLIDER_WEIGHTS_FILE).header.shapes else None

    @cached_property
    def profile(self) -> Profile | None:
        """The profile of the expert's training inputs, or None without one."""
        file = self._file(GLIDER_WEIGHTS_FILE)
        names = [name for name in file.header.shapes if name.startswith(PREFIX)]
        return Profile.of_tensors(dict(zip(names, file.read(names), strict=True))) if names else None

    @property
    def profile_widths(self) -> dict[str, int]:
        """The widths of the profile's embeddings and hidden states, from the header alone."""
        shapes = self._file(GLIDER_WEIGHTS_FILE).header.shapes
        return {part: shapes[PREFIX + part][-1] for part in WIDTHS if PREFIX + part in shapes}

    @property
    def vectors(self) -> dict[str, Tensor]:
        """Everything in `glider.safetensors`: gates, instruction embedding, profile."""
        file = self._file(GLIDER_WEIGHTS_FILE)
        return dict(zip(file.header.shapes, file.read(file.header.shapes), strict=True))

    def verify(self, hashes: Mapping[str, str] | None = None, adapter: bool = True) -> None:
        """Check every file against its hash (where given) and every value for being finite.

        Without `adapter` the LoRA pairs, which are most of the bytes, are checked as they are read, or now where one
        was read before or their hash is not given. Afterwards only checked tensors are returned.
        """
        self._hashes.update({file: expected for file, expected in (hashes or {}).items() if file in TENSOR_FILES})
        for file, expected in (hashes or {}).items():
            self._check_present(file)
            if file in TENSOR_FILES:
                self._file(file).expect(expected)
            else:
                _require_hash(self.directory / file, self.name, expected, self._read.get(file, expected))
                _require_hash(self.directory / file, self.name, expected, sha256(self.directory / file))
        later = not adapter and not self._touched and ADAPTER_WEIGHTS_FILE in (hashes or {})
        for file in TENSOR_FILES[1:] if later else TENSOR_FILES:
            if key := self._file(file).not_finite():
                raise self._not_finite(file, key)
        self._finite_due = later

    def record(self) -> dict[str, FileRecord]:
        """Records of the files as they are now, for a pool that the expert joins."""
        digests = {file: self._file(file).digests() for file in TENSOR_FILES}
        places = {file: self.directory / file for file in EXPERT_FILES}
        return {
            file: FileRecord(sha256=sha256(place), size=place.stat().st_size, tensors=digests.get(file))
            for file, place in places.items()
        }

    def _vector(self, name: str) -> Tensor:
        return self._file(GLIDER_WEIGHTS_FILE).read((name,))[0]

    def _file(self, file: str) -> TensorFile:
        """A tensor file, opened once in each process."""
        if (known := self._files.get(file)) is not None:
            return known
        with self._opening:
            if file not in self._files:
                opened = _tensor_file(self.directory, file, self.name, self._records)
                if file in self._hashes:
                    opened.expect(self._hashes[file])
                self._files[file] = opened
            return self._files[file]

    def _check_present(self, file: str) -> None:
        if not (self.directory / file).is_file():
            raise ExpertError(f"{self.directory / file} of expert {self.name}", "no such file", "Get the expert anew.")

    def _not_finite(self, file: str, key: str) -> ExpertError:
        return ExpertError(
            f"finite weights in {self.directory / file} of expert {self.name}",
            f"NaN or infinity (or a value beyond {LARGEST_VALUE:g}) in {key}",
            "The expert is broken; train it again or leave it out.",
        )


def write_expert(
    directory: Path,
    card: ExpertCard,
    peft_config: Any,
    lora: Mapping[str, Tensor],
    gates: Mapping[str, Float[Tensor, " D"]],
    instruction: Float[Tensor, " G"] | None,
    dtype: torch.dtype | None = None,
    profile: Profile | None = None,
) -> Expert:
    """Write a whole expert directory atomically and open it.

    `lora` holds PEFT's tensors under PEFT's names, `gates` maps site to gate. LoRA pairs and gates are stored in
    `dtype` (default: bfloat16), the instruction embedding in float32 (its cosine decides between near neighbours).
    """
    import torch

    dtype = dtype or torch.bfloat16
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


def _tensor_file(directory: Path, file: str, name: str, records: Mapping[str, FileRecord]) -> TensorFile:
    record = records.get(file)
    hashes = (None, None) if record is None else (record.tensors, record.sha256)
    return TensorFile(directory / file, *hashes, owner=f"expert {name}")


def _require_hashes(directory: Path, name: str, got: Mapping[str, str], records: Mapping[str, FileRecord]) -> None:
    for file, sha in got.items():
        _require_hash(directory / file, name, records[file].sha256, sha)


def _require_hash(path: Path, name: str, expected: str, got: str) -> None:
    if got != expected:
        raise ExpertError(
            f"{path} of expert {name} unchanged since it joined the pool (sha256 {expected[:12]})",
            f"sha256 {got[:12]}",
            "Get the file anew, or remove the expert and add it again if you changed it on purpose.",
        )


def _sites_of(directory: Path, adapter: Header, extra: Header) -> Mapping[str, ExpertSite]:
    try:
        return parse_sites(adapter, extra)
    except MisfitError as fault:
        raise ExpertError(f"{fault.expected} in {directory / fault.file}", fault.got, _AGAIN) from fault


def _check_agreement(
    directory: Path, card: ExpertCard, layout: LoraLayout, sites: Mapping[str, ExpertSite], extra: Header
) -> None:
    """Check that the files agree: ranks with the adapter's settings, the instruction's width with the embedder's
    vectors."""
    for name, site in sites.items():
        try:
            rank, _ = layout.rank_at(name), layout.alpha_at(name)  # all are looked up now, where it may be refused
        except ValueError as fault:
            expected = f"patterns that suit {len(sites)} sites in {directory / ADAPTER_CONFIG_FILE}"
            raise ExpertError(expected, str(fault), "Write the modules' names instead of expressions.") from fault
        if site.rank != rank:
            raise ExpertError(
                f"rank {rank} at {name}, as {directory / ADAPTER_CONFIG_FILE} says",
                f"rank {site.rank} in {ADAPTER_WEIGHTS_FILE}",
                "The files do not belong together; get the expert anew.",
            )
    width = extra.shapes.get(INSTRUCTION)
    expected = card.embedder and (card.embedder.dimension,)
    embedded = {extra.shapes[PREFIX + part][-1:] for part in EMBEDDED if PREFIX + part in extra.shapes}
    if embedded - {expected}:
        raise ExpertError(
            f"profile embeddings of width {expected} in {directory / GLIDER_WEIGHTS_FILE}, as its {CARD_FILE} says",
            f"{sorted(embedded)}",
            "The files do not belong together; make the profile again.",
        )
    if width != expected:
        raise ExpertError(
            f"an instruction of shape {expected} in {directory / GLIDER_WEIGHTS_FILE}, as its {CARD_FILE} says",
            f"{width}",
            "The files do not belong together; describe the expert again.",
        )
