"""A pool: experts for the same base model, and the `pool.json` that binds them."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from glider.errors import GliderError, PoolError, RouterError
from glider.experts.base_identity import BaseIdentity, same_base
from glider.experts.card import CARD_FILE, NAME
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.index import (
    POOL_FILE,
    Calibration,
    ExpertRecord,
    FileRecord,
    PoolIndex,
    parsed_index,
    read_pool_file,
    write_index,
)
from glider.experts.profile import WIDTHS
from glider.experts.trust import UNSIGNED, Trust, require_signature, trusted_keys
from glider.files.disk import within_hub_cache
from glider.files.opening import sha256
from glider.files.replacing import is_place_of_lock, recover, sweep
from glider.verdicts.background import BACKGROUND_FILE, Background
from glider.verdicts.thresholds import Thresholds

__all__ = ["POOL_FILE", "Calibration", "ExpertRecord", "FileRecord", "Pool", "PoolIndex", "read_index"]

LOCK_FILE = ".pool.lock"


class Pool:
    """An opened pool: a snapshot of its index, its experts in the index's order."""

    def __init__(self, path: Path, index: PoolIndex, experts: Sequence[Expert], require_key: Trust = None):
        self.path, self.index, self.experts, self.require_key = path, index, tuple(experts), require_key

    @classmethod
    def open(cls, path: Path | str, require_key: Trust = None) -> "Pool":
        """Open a pool and check its structure; every fault is a `GliderError` naming the expert and the file.

        Tensors are not read. `verify` checks hashes and values, and `glider.load` calls it. `require_key` is a file of
        public keys (default: `$GLIDER_TRUSTED_KEYS`, where it is set): the owner of one must have signed the pool, and
        nothing is taken from it that the signature does not vouch for.
        """
        path = Path(path)
        index = read_index(path, require_key)
        experts = []
        for record in index.experts:
            recover(path / record.home)
            _check_files(path, record)
            signed = trusted_keys(require_key) is not None
            expert = Expert.open(path / record.home, record.name, record.files, signed)
            _check_member(index, expert)
            experts.append(expert)
        _check_widths(experts)
        return cls(path, index, experts, require_key)

    def reload(self) -> "Pool":
        """The pool as it is on disk now; this one stays the snapshot it is."""
        return Pool.open(self.path, self.require_key)

    def with_expert(self, directory: Path | str, name: str) -> "Pool":
        """This snapshot with one more expert, from any directory and under any name. Nothing is written: `reload` gives
        the pool without it."""
        _check_name(name)
        self.refuse_unsigned(name)
        if name in self.names:
            raise PoolError("a new name", f"{name}, which is in the pool", "Choose another name.")
        expert = Expert.open(directory)
        index = self.index
        if index.embedder is None and expert.card.embedder is not None:
            index = index.model_copy(update={"embedder": expert.card.embedder})
        _check_member(index, expert)
        expert = expert.renamed(name)
        _check_widths([*self.experts, expert])
        expert.verify()
        records = (*index.experts, _record(expert, name))
        return Pool(self.path, index.model_copy(update={"experts": records}), (*self.experts, expert), self.require_key)

    def refuse_unsigned(self, name: str) -> None:
        """Raise `PoolError` for an expert that no signature vouches for, where the pool must have one."""
        if trusted_keys(self.require_key) is not None:
            raise PoolError(
                f"experts of the pool that the owner of {trusted_keys(self.require_key)} signed",
                f"{name}, from elsewhere",
                "Add it to the pool, let that be signed, and reload it.",
            )

    def without(self, name: str) -> "Pool":
        """This snapshot without an expert; nothing is written."""
        gone, records = self[name], tuple(record for record in self.index.experts if record.name != name)
        index = self.index.model_copy(update={"experts": records})
        return Pool(self.path, index, tuple(expert for expert in self.experts if expert is not gone), self.require_key)

    @classmethod
    def create(cls, path: Path | str, base: BaseIdentity) -> "Pool":
        """Make an empty pool for a base model."""
        path = Path(path)
        if (path / POOL_FILE).exists():
            raise PoolError(f"no pool yet at {path}", f"an existing {POOL_FILE}", "Open it, or give another path.")
        write_index(path, PoolIndex(base=base))
        return cls.open(path, UNSIGNED)

    def add(self, name: str) -> "Pool":
        """Take up the expert in the directory `name` inside the pool; returns the pool as it is now.

        Reads that expert and the sizes of the others' files; writes nothing but `pool.json`.
        """
        with self._changing() as now:
            if name in now.names or name in {record.home for record in now.index.experts}:
                raise PoolError("a new expert", f"{name}, which is in the pool", "Remove it first.")
            _check_name(name)
            for record in now.index.experts:
                _check_files(self.path, record)
            expert = Expert.open(self.path / name)
            index = now.index
            if index.embedder is None and expert.card.embedder is not None:
                index = index.model_copy(update={"embedder": expert.card.embedder})
            _check_member(index, expert)
            _check_widths([*now.experts, expert])
            expert.verify()
            record = _record(expert, name)
            _check_files(self.path, record)
            return now._write(index.model_copy(update={"experts": (*index.experts, record)}), (*now.experts, expert))

    @staticmethod
    def put(path: Path, name: str, require_key: Trust = UNSIGNED) -> None:
        """Take up the expert in `path/name`, in place of what the index told of that directory before.

        Works whatever has become of the others: those that cannot be opened are passed over. With `require_key` the
        pool must be as its owner signed it; it is not any more afterwards.
        """
        _check_name(name)
        with _locked(path):
            before = index = read_index(path, require_key)
            known = next((record for record in index.experts if record.home == name), None)
            expert = Expert.open(path / name, known.name if known else name)
            if index.embedder is None and expert.card.embedder is not None:
                index = index.model_copy(update={"embedder": expert.card.embedder})
            _check_member(index, expert)
            expert.verify()
            record = _record(expert, expert.name, None if expert.name == name else name)
            _check_files(path, record)
            records = list(index.experts)
            if known is None:
                records.append(record)
            else:
                records[records.index(known)] = record
            index = index.model_copy(update={"experts": tuple(records)})
            if index != before:
                _check_widths([*_openable(path, index, expert.name), expert])
                write_index(path, index)

    @staticmethod
    def discard(path: Path, name: str, require_key: Trust = UNSIGNED) -> list[str]:
        """Take an expert out of the index, even one whose files are broken; returns the names that are left.

        `require_key` as in `put`.
        """
        with _locked(path):
            index = read_index(path, require_key)
            left = tuple(record for record in index.experts if record.name != name)
            if len(left) == len(index.experts):
                known = ", ".join(record.name for record in index.experts)
                raise PoolError(f"an expert of the pool ({known})", repr(name), "Check the name.")
            write_index(path, index.model_copy(update={"experts": left}))
            return [record.name for record in left]

    @staticmethod
    def unchanged(path: Path, name: str) -> bool:
        """Whether the files of the expert in `path/name` are as when they joined; True for one that has not joined."""
        index = read_index(path, UNSIGNED) if (path / POOL_FILE).exists() else None
        known = next((record for record in index.experts if record.home == name), None) if index else None
        return known is None or all(
            (path / name / file).is_file() and sha256(path / name / file) == told.sha256
            for file, told in known.files.items()
        )

    def remove(self, name: str) -> "Pool":
        """Take an expert out of the index; its directory stays. Returns the pool as it is now."""
        with self._changing() as now:
            gone = now[name]
            records = tuple(record for record in now.index.experts if record.name != name)
            experts = tuple(expert for expert in now.experts if expert is not gone)
            return now._write(now.index.model_copy(update={"experts": records}), experts)

    def rename(self, name: str, new: str) -> "Pool":
        """Give an expert another name in this pool; its files, its card and its place stay as they are."""
        with self._changing() as now:
            position = now.names.index(now[name].name)
            if new in now.names:
                raise PoolError("a new name", f"{new}, which is in the pool", "Choose another name.")
            old = now.index.experts[position]
            _check_name(new)
            record = ExpertRecord(name=new, directory=None if new == old.home else old.home, files=old.files)
            records, experts = list(now.index.experts), list(now.experts)
            records[position], experts[position] = record, experts[position].renamed(new)
            return now._write(now.index.model_copy(update={"experts": tuple(records)}), tuple(experts))

    def calibrate(self, signal: str, calibration: Calibration, default: bool = True) -> "Pool":
        """Store what a global signal was calibrated to; by `default` it is the one to use from now on."""
        with self._changing() as now:
            stored = {**now.index.calibrations, signal: calibration}
            changed = {"calibrations": stored, "signal": signal if default else now.index.signal}
            return now._write(now.index.model_copy(update=changed), now.experts)

    def set_verdicts(self, thresholds: Thresholds, background: Background | None = None) -> "Pool":
        """Store the thresholds of verdicts, and the background that they are for where it is not the package's."""
        with self._changing() as now:
            if background is not None:
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
        return Background.open(self.path / BACKGROUND_FILE, stored.background)

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
            _refuse("a gate at every site of every expert", lacking, "Train them with `glider expert gates`")
        if instructions:
            lacking = [expert.name for expert in self if expert.instruction is None]
            _refuse(
                "an instruction embedding for every expert",
                lacking,
                "Give them one with `glider expert describe`",
            )

    @contextmanager
    def _changing(self) -> Iterator["Pool"]:
        """Hold the pool's lock; yields the pool as it is on disk, which another process may have changed."""
        with _locked(self.path):
            index = read_index(self.path, UNSIGNED)  # what differs from what was opened is opened again, by the key
            yield self if index == self.index else Pool.open(self.path, self.require_key)

    def _write(self, index: PoolIndex, experts: Sequence[Expert]) -> "Pool":
        return Pool(self.path, write_index(self.path, index), experts, self.require_key)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a pool's lock; what dead processes left is swept."""
    lock = path / LOCK_FILE
    if not is_place_of_lock(lock):
        raise PoolError(f"the lock {lock} of the pool, a file", "a link or no regular file", "Remove it.")
    with FileLock(lock):
        sweep(path)
        yield


def _openable(path: Path, index: PoolIndex, but: str) -> Iterator[Expert]:
    """The experts of an index that are whole, without one of them."""
    for record in index.experts:
        if record.name != but:
            with suppress(GliderError):
                yield Expert.open(path / record.home, record.name)


def _refuse(needed: str, lacking: list[str], remedy: str) -> None:
    if lacking:
        raise RouterError(needed, f"none in {', '.join(lacking)}", f"{remedy}, or drop them.")


def read_index(path: Path, require_key: Trust) -> PoolIndex:
    """The index, read once: what is parsed is what was signed, where a signature is asked for."""
    content = read_pool_file(path)
    if (keys := trusted_keys(require_key)) is not None:
        require_signature(content, path, keys)
    return parsed_index(content, path / POOL_FILE)


def _check_name(name: str) -> None:
    if re.fullmatch(NAME, name) is None:
        raise PoolError("a name of letters, digits, '.', '_' and '-'", repr(name), "Choose another name.")


def _check_files(pool: Path, record: ExpertRecord) -> None:
    """Every file is there, is inside the pool, and has its size; links that lead out are refused."""
    home = pool / record.home
    missing = [name for name in EXPERT_FILES if name not in record.files]
    unknown = record.files.keys() - set(EXPERT_FILES)
    if missing or unknown:
        raise PoolError(
            f"records of {', '.join(EXPERT_FILES)} for expert {record.name}",
            f"none of {', '.join(missing)}" if missing else f"one of {', '.join(sorted(unknown))}",
            "Build the pool again.",
        )
    for place in (home, *(home / name for name in EXPERT_FILES)):
        target = Path(os.path.realpath(place))
        outside = place.is_symlink() and not target.is_relative_to(os.path.realpath(pool))
        if outside and not (place != home and within_hub_cache(place.parent, target)):
            raise PoolError(
                f"files of expert {record.name} inside the pool", f"{place}, a link to elsewhere", "Copy the files."
            )
    for name, known in record.files.items():
        file = home / name
        size = file.stat().st_size if file.is_file() else None
        if size != known.size:
            got = "no such file" if size is None else f"{size} bytes"
            raise PoolError(
                f"{file} of expert {record.name} with {known.size} bytes",
                got,
                "Get the file anew, or remove the expert from the pool; if you changed it on purpose, add it again "
                "with `glider pool add`.",
            )


def _check_member(index: PoolIndex, expert: Expert) -> None:
    name, home = expert.name, expert.directory.name
    if expert.card.name != home:
        raise PoolError(
            f"the card of {home} in {expert.directory}", f"that of {expert.card.name}", "Rename the directory."
        )
    if not same_base(index.base, expert.card.base):
        raise PoolError(
            f"experts for the pool's base model {index.base.model_id} ({index.base.hash})",
            f"{name}, made for {expert.card.base.model_id} ({expert.card.base.hash}) by its {CARD_FILE}",
            "Leave it out, or train it for this base.",
        )
    mine = expert.card.embedder
    if mine is not None and not mine.matches(index.embedder):
        raise PoolError(
            f"instruction embeddings by the pool's embedder ({index.embedder and index.embedder.embedder})",
            f"{name}, embedded by {mine.embedder} (prefix {mine.prefix!r}, {mine.dimension} wide) by its {CARD_FILE}",
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
    states: dict[str, tuple[int, str]] = {}
    for expert in experts:
        for part, width in expert.profile_widths.items():
            known, first = states.setdefault(WIDTHS[part], (width, expert.name))
            if known != width:
                raise PoolError(
                    f"profiles of one width ({part} of {known}, as in {first})",
                    f"{width} in {expert.name}",
                    "Make its profile again with `glider expert profile`.",
                )


def _record(expert: Expert, name: str, directory: str | None = None) -> ExpertRecord:
    return ExpertRecord(name=name, directory=directory, files=expert.record())
