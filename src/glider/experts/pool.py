"""A pool: experts for the same base model, and the `pool.json` that binds them."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from glider.config import Config, faults
from glider.errors import PoolError, RouterError
from glider.experts.base_identity import BaseIdentity
from glider.experts.card import EmbedderIdentity
from glider.experts.disk import sha256, write_json
from glider.experts.expert import EXPERT_FILES, Expert

POOL_FILE = "pool.json"


class FileRecord(Config):
    """What a file of an expert was when the expert joined."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class ExpertRecord(Config):
    """One expert of a pool; its directory is its name."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    files: dict[str, FileRecord]


class Calibration(Config):
    """The constants of alpha = gamma * [max global > p] + beta for this pool and embedder, and where they come from."""

    p: float
    gamma: float = 100.0
    beta: float = 3.0
    source: str


class PoolIndex(Config):
    """`pool.json`, format 1."""

    format: Literal[1] = 1
    base: BaseIdentity
    embedder: EmbedderIdentity | None = None
    calibration: Calibration | None = None
    experts: tuple[ExpertRecord, ...] = ()


class Pool:
    """An opened pool: a snapshot of its index, its experts in the index's order."""

    def __init__(self, path: Path, index: PoolIndex, experts: Sequence[Expert]):
        self.path, self.index, self.experts = path, index, tuple(experts)

    @classmethod
    def open(cls, path: Path | str) -> "Pool":
        """Open a pool and check its structure; every fault is a `GliderError` naming the expert and the file.

        Tensors are not read. `verify` checks hashes and values, and `glider.load` calls it.
        """
        path = Path(path)
        index = _read_index(path)
        experts = []
        for record in index.experts:
            _check_sizes(path / record.name, record)
            expert = Expert.open(path / record.name)
            _check_member(index, expert, record.name)
            experts.append(expert)
        _check_widths(experts)
        return cls(path, index, experts)

    @classmethod
    def create(cls, path: Path | str, base: BaseIdentity) -> "Pool":
        """Make an empty pool for a base model."""
        path = Path(path)
        if (path / POOL_FILE).exists():
            raise PoolError(f"no pool yet at {path}", f"an existing {POOL_FILE}", "Open it, or give another path.")
        write_json(path / POOL_FILE, PoolIndex(base=base).model_dump(mode="json"))
        return cls.open(path)

    def add(self, name: str) -> "Pool":
        """Take up the expert in the directory `name` inside the pool; returns the pool as it is now.

        Touches nothing but `pool.json`.
        """
        if name in self.names:
            raise PoolError("a new expert", f"{name}, which is in the pool", "Remove it first.")
        expert = Expert.open(self.path / name)
        index = self.index
        if index.embedder is None and expert.card.embedder is not None:
            index = index.model_copy(update={"embedder": expert.card.embedder})
        _check_member(index, expert, name)
        _check_widths([*self.experts, expert])
        expert.verify()
        return self._replace(index.model_copy(update={"experts": (*index.experts, _record(expert, name))}))

    def remove(self, name: str) -> "Pool":
        """Take an expert out of the index; its directory stays. Returns the pool as it is now."""
        self[name]
        kept = tuple(record for record in self.index.experts if record.name != name)
        return self._replace(self.index.model_copy(update={"experts": kept}))

    def calibrate(self, calibration: Calibration) -> "Pool":
        """Store the constants of alpha; returns the pool as it is now."""
        return self._replace(self.index.model_copy(update={"calibration": calibration}))

    def verify(self) -> None:
        """Check every file of every expert against its hash, and every weight for being finite."""
        for expert, record in zip(self.experts, self.index.experts, strict=True):
            expert.verify({file: known.sha256 for file, known in record.files.items()})

    @property
    def names(self) -> list[str]:
        return [record.name for record in self.index.experts]

    @property
    def sites(self) -> list[str]:
        """Every site that any expert adapts, in the order of first mention."""
        return list(dict.fromkeys(site for expert in self.experts for site in expert.sites))

    def __len__(self) -> int:
        return len(self.experts)

    def __iter__(self) -> Iterator[Expert]:
        return iter(self.experts)

    def __getitem__(self, name: str) -> Expert:
        if name not in self.names:
            raise PoolError(f"an expert of the pool ({', '.join(self.names)})", repr(name), "Check the name.")
        return self.experts[self.names.index(name)]

    def require(self, router: str, *, gates: bool = False, instructions: bool = False) -> None:
        """Raise `RouterError` naming every expert that lacks what a router needs."""
        if gates:
            lacking = [e.name for e in self if not all(site.has_gate for site in e.sites.values())]
            _refuse(router, "a gate at every site of every expert", lacking, "Train the missing gates")
        if instructions:
            lacking = [expert.name for expert in self if expert.instruction is None]
            _refuse(router, "an instruction embedding for every expert", lacking, "Describe and embed these experts")

    def _replace(self, index: PoolIndex) -> "Pool":
        write_json(self.path / POOL_FILE, index.model_dump(mode="json"))
        return Pool.open(self.path)


def _refuse(router: str, needed: str, lacking: list[str], remedy: str) -> None:
    if lacking:
        raise RouterError(f"{needed} (router {router})", f"none in {', '.join(lacking)}", f"{remedy}, or drop them.")


def _read_index(path: Path) -> PoolIndex:
    file = path / POOL_FILE
    try:
        return PoolIndex.model_validate(json.loads(file.read_text("utf8")))
    except (FileNotFoundError, NotADirectoryError):
        raise PoolError(
            f"a pool directory with {POOL_FILE}", f"{path} without it", "Give --pool the directory of a pool."
        ) from None
    except ValidationError as fault:
        raise PoolError(f"a pool of format 1 in {file}", faults(fault), "Build the pool again.") from fault
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise PoolError(f"JSON in {file}", str(fault), "Build the pool again; the file is damaged.") from fault


def _check_sizes(directory: Path, record: ExpertRecord) -> None:
    for name in EXPERT_FILES:
        if name not in record.files:
            raise PoolError(f"a record of {name} for expert {record.name}", "none", "Build the pool again.")
    for name, known in record.files.items():
        file = directory / name
        size = os.path.getsize(file) if name in EXPERT_FILES and file.is_file() else None
        if size != known.size:
            got = "no such file" if size is None else f"{size} bytes"
            raise PoolError(
                f"{file} of expert {record.name} with {known.size} bytes",
                got,
                "Get the file anew, or remove the expert from the pool.",
            )


def _check_member(index: PoolIndex, expert: Expert, name: str) -> None:
    if expert.name != name:
        raise PoolError(f"expert {name} in {expert.directory}", f"a card of {expert.name}", "Rename the directory.")
    if expert.card.base.hash != index.base.hash:
        raise PoolError(
            f"experts for the pool's base model {index.base.model_id} ({index.base.hash})",
            f"{name}, made for {expert.card.base.model_id} ({expert.card.base.hash})",
            "Leave it out, or train it for this base.",
        )
    mine = expert.card.embedder
    if mine is not None and not mine.matches(index.embedder):
        raise PoolError(
            f"instruction embeddings by the pool's embedder ({index.embedder and index.embedder.embedder})",
            f"{name}, embedded by {mine.embedder} (prefix {mine.prefix!r}, {mine.dimension} wide)",
            "Describe the expert again with the pool's embedder.",
        )


def _check_widths(experts: Sequence[Expert]) -> None:
    widths: dict[str, tuple[int, int, str]] = {}
    for expert in experts:
        for name, site in expert.sites.items():
            d, o, first = widths.setdefault(name, (site.in_features, site.out_features, expert.name))
            if (d, o) != (site.in_features, site.out_features):
                raise PoolError(
                    f"a LoRA pair of width {d} -> {o} at {name}, as in {first}",
                    f"{site.in_features} -> {site.out_features} in {expert.name}",
                    "These experts are not for the same base model.",
                )


def _record(expert: Expert, name: str) -> ExpertRecord:
    files = {
        file: FileRecord(sha256=sha256(expert.directory / file), size=os.path.getsize(expert.directory / file))
        for file in EXPERT_FILES
    }
    return ExpertRecord(name=name, files=files)
