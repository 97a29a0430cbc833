"""A pool: experts for the same base model, and the `pool.json` that binds them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from glider.errors import PoolError, RouterError
from glider.experts.base_identity import BaseIdentity
from glider.experts.expert import Expert
from glider.experts.index import (
    BACKGROUND_FILE,
    POOL_FILE,
    Calibration,
    ExpertRecord,
    FileRecord,
    PoolIndex,
    write_index,
)
from glider.experts.membership import (
    check_files,
    check_member,
    check_name,
    check_widths,
    joining,
    locked,
    read_index,
    record_of,
)
from glider.experts.thresholds import Thresholds
from glider.experts.trust import UNSIGNED, Trust, trusted_keys
from glider.files.disk import refuse_links_out
from glider.files.opening import sha256
from glider.files.replacing import recover

if TYPE_CHECKING:
    from glider.verdicts.background import Background

__all__ = ["POOL_FILE", "Calibration", "ExpertRecord", "FileRecord", "Pool", "PoolIndex", "read_index"]


class Pool:
    """An opened pool: a snapshot of its index, its experts in the index's order. Made by `Pool.open` and `Pool.create`.

    Arguments:
        path: The pool's directory.
        index: The content of `pool.json`.
        experts: The experts of the index, opened, in its order.
        require_key: File of public keys; the owner of one of them must have signed the pool.

    Raises: methods that change the pool raise `PoolError` and leave `pool.json` as it was.
    """

    def __init__(self, path: Path, index: PoolIndex, experts: Sequence[Expert], require_key: Trust = None):
        self.path, self.index, self.experts, self.require_key = path, index, tuple(experts), require_key

    @classmethod
    def open(cls, path: Path | str, require_key: Trust = None, only: Collection[str] | None = None) -> Pool:
        """Open a pool and check its structure; every fault is a `GliderError` naming the expert and the file.

        Tensors are not read. `verify` checks hashes and values, and `glider.load` calls it. `require_key` is a file of
        public keys (default: `$GLIDER_TRUSTED_KEYS`, where it is set): the owner of one must have signed the pool, and
        only what the signature vouches for is used. With `only` just these experts are opened, even if others are
        broken: a pool to read, whose methods that change it work on the whole pool.
        """
        path = Path(path)
        index = read_index(path, require_key)
        if only is not None:
            index = _narrowed(index, only)
        experts = []
        for record in index.experts:
            recover(path / record.home)
            check_files(path, record)
            signed = trusted_keys(require_key) is not None
            expert = Expert.open(path / record.home, record.name, record.files, signed)
            check_member(index, expert)
            experts.append(expert)
        check_widths(experts)
        return cls(path, index, experts, require_key)

    def reload(self) -> Pool:
        """The pool as it is on disk now; this one stays the snapshot it is."""
        return Pool.open(self.path, self.require_key)

    def with_expert(self, directory: Path | str, name: str) -> Pool:
        """This snapshot with one more expert, from any directory and under any name. Nothing is written: `reload` gives
        the pool without it."""
        check_name(name)
        self.refuse_unsigned(name)
        if name in self.names:
            raise PoolError("a new name", f"{name}, which is in the pool", "Choose another name.")
        expert = Expert.open(directory)
        index = self.index
        if index.embedder is None and expert.card.embedder is not None:
            index = index.model_copy(update={"embedder": expert.card.embedder})
        check_member(index, expert)
        expert = expert.renamed(name)
        check_widths([*self.experts, expert])
        expert.verify()
        records = (*index.experts, record_of(expert, name))
        return Pool(self.path, index.model_copy(update={"experts": records}), (*self.experts, expert), self.require_key)

    def refuse_unsigned(self, name: str) -> None:
        """Raise `PoolError` for an expert without a signature, where the pool requires one."""
        if trusted_keys(self.require_key) is not None:
            raise PoolError(
                f"experts of the pool that the owner of {trusted_keys(self.require_key)} signed",
                f"{name}, from elsewhere",
                "Add it to the pool, let that be signed, and reload it.",
            )

    def with_calibration(self, signal: str, calibration: Calibration) -> Pool:
        """This snapshot with the calibration of a global signal; nothing is written."""
        stored = {**self.index.calibrations, signal: calibration}
        index = self.index.model_copy(update={"calibrations": stored})
        return Pool(self.path, index, self.experts, self.require_key)

    def without(self, name: str) -> Pool:
        """This snapshot without an expert; nothing is written."""
        gone, records = self[name], tuple(record for record in self.index.experts if record.name != name)
        index = self.index.model_copy(update={"experts": records})
        return Pool(self.path, index, tuple(expert for expert in self.experts if expert is not gone), self.require_key)

    @classmethod
    def create(cls, path: Path | str, base: BaseIdentity) -> Pool:
        """Make an empty pool for a base model."""
        path = Path(path)
        if (path / POOL_FILE).exists():
            raise PoolError(f"no pool yet at {path}", f"an existing {POOL_FILE}", "Open it, or give another path.")
        write_index(path, PoolIndex(base=base))
        return cls.open(path, UNSIGNED)

    def add(self, directory: Path | str, name: str | None = None) -> Pool:
        """Add an expert under a new name; returns the pool as it is now.

        `directory` is the name of a directory inside the pool, or an expert's directory anywhere, which is copied into
        the pool; `name` is the expert's name here, by default its directory's, or the card's for an expert from
        elsewhere. Reads that expert and the sizes of the others' files, and writes `pool.json` last. Raises `PoolError`
        for a name that is in the pool, and for an expert of another base model.
        """
        with self._changing() as now:
            for record in now.index.experts:
                check_files(self.path, record)
            with joining(self.path, now.index, directory, name, fresh=True) as (index, expert):
                check_widths([*now.experts, expert])
                return now._write(index, (*now.experts, expert))

    def remove(self, name: str) -> Pool:
        """Take an expert out of the index; its directory stays. Returns the pool as it is now."""
        with self._changing() as now:
            gone = now[name]
            records = tuple(record for record in now.index.experts if record.name != name)
            experts = tuple(expert for expert in now.experts if expert is not gone)
            return now._write(now.index.model_copy(update={"experts": records}), experts)

    def rename(self, name: str, new: str) -> Pool:
        """Rename an expert in this pool; its files, its card and its directory stay as they are."""
        with self._changing() as now:
            position = now.names.index(now[name].name)
            if new in now.names:
                raise PoolError("a new name", f"{new}, which is in the pool", "Choose another name.")
            old = now.index.experts[position]
            check_name(new)
            record = ExpertRecord(name=new, directory=None if new == old.home else old.home, files=old.files)
            records, experts = list(now.index.experts), list(now.experts)
            records[position], experts[position] = record, experts[position].renamed(new)
            return now._write(now.index.model_copy(update={"experts": tuple(records)}), tuple(experts))

    def calibrate(self, signal: str, calibration: Calibration, default: bool = True) -> Pool:
        """Store the calibration of a global signal; with `default` the pool uses this signal from now on."""
        with self._changing() as now:
            stored = {**now.index.calibrations, signal: calibration}
            changed = {"calibrations": stored, "signal": signal if default else now.index.signal}
            return now._write(now.index.model_copy(update=changed), now.experts)

    def set_verdicts(self, thresholds: Thresholds, background: Background | None = None) -> Pool:
        """Store the thresholds of verdicts, and their background where it is not the package's.

        Whoever is killed meanwhile leaves the pool with what it had, or with its thresholds and the package's.
        """
        with self._changing() as now:
            if background is not None:
                stored = now.index.verdicts
                if stored is not None and stored.background is not None and not now._has_background(background):
                    without = stored.model_copy(update={"background": None})
                    now = now._write(now.index.model_copy(update={"verdicts": without}), now.experts)
                background.save(self.path / BACKGROUND_FILE)
                thresholds = thresholds.model_copy(update={"background": sha256(self.path / BACKGROUND_FILE)})
            return now._write(now.index.model_copy(update={"verdicts": thresholds}), now.experts)

    @property
    def background(self) -> Background | None:
        """The pool's own background; None where it uses the package's. Raises `PoolError` if it is not the file that
        the thresholds were made for."""
        stored = self.index.verdicts
        if stored is None or stored.background is None:
            return None
        from glider.verdicts.background import Background

        refuse_links_out(self.path, (BACKGROUND_FILE,))
        return Background.open(self.path / BACKGROUND_FILE, stored.background)

    def _has_background(self, background: Background) -> bool:
        """Whether it is the one that is stored; one that cannot be read is none."""
        try:
            stored = self.background
        except PoolError:
            return False
        return stored is not None and stored.equals(background)

    def verify(self, adapters: bool = True) -> None:
        """Check every file against its hash, and every weight of an expert for being finite.

        Without `adapters` an expert's LoRA pairs are checked when the first of them is read.
        """
        from glider.experts.router_files import verify_routers

        _ = self.background  # checked as it is read
        verify_routers(self)
        for expert, record in zip(self.experts, self.index.experts, strict=True):
            expert.verify({file: known.sha256 for file, known in record.files.items()}, adapters)

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

    def require(self, *, gates: bool = False, instructions: bool = False) -> None:
        """Raise `RouterError` naming every expert that lacks what a router needs."""
        if gates:
            lacking = [e.name for e in self if not all(site.has_gate for site in e.sites.values())]
            remedy = "Train them with `glider expert gates`, take a router that needs none, such as arrow"
            _refuse("a gate at every site of every expert", lacking, remedy)
        if instructions:
            lacking = [expert.name for expert in self if expert.instruction is None]
            _refuse(
                "an instruction embedding for every expert",
                lacking,
                "Give them one with `glider expert describe`",
            )

    @contextmanager
    def _changing(self) -> Iterator[Pool]:
        """Hold the pool's lock; yields the pool as it is on disk, which another process may have changed."""
        with locked(self.path):
            index = read_index(self.path, UNSIGNED)  # what differs from what was opened is opened again, by the key
            yield self if index == self.index else Pool.open(self.path, self.require_key)

    def _write(self, index: PoolIndex, experts: Sequence[Expert]) -> Pool:
        return Pool(self.path, write_index(self.path, index), experts, self.require_key)


def _refuse(needed: str, lacking: list[str], remedy: str) -> None:
    if lacking:
        raise RouterError(needed, f"none in {', '.join(lacking)}", f"{remedy}, or drop them.")


def _narrowed(index: PoolIndex, names: Collection[str]) -> PoolIndex:
    """The index with these experts alone."""
    known = [record.name for record in index.experts]
    if unknown := [name for name in names if name not in known]:
        raise PoolError(f"an expert of the pool ({', '.join(known)})", repr(unknown[0]), "Check the name.")
    return index.model_copy(update={"experts": tuple(record for record in index.experts if record.name in names)})
