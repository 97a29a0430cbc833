"""How experts join and leave a pool, even one with broken experts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from glider.errors import GliderError, PoolError
from glider.experts.base_identity import BaseIdentity, same_base
from glider.experts.card import CARD_FILE, NAME
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.index import (
    POOL_FILE,
    ExpertRecord,
    PoolIndex,
    parsed_index,
    read_pool_file,
    require_home,
    write_index,
)
from glider.experts.profile import WIDTHS
from glider.experts.trust import UNSIGNED, Trust, require_signature, trusted_keys
from glider.files.disk import copy_file, new_directory, within_hub_cache, write_json
from glider.files.opening import UnfitFile, sha256
from glider.files.replacing import is_place_of_lock, remove_entry, sweep

LOCK_FILE = ".pool.lock"


def add_expert(path: Path, directory: Path | str, name: str | None = None, require_key: Trust = UNSIGNED) -> str:
    """Add an expert, in place of the index's earlier record of its directory; returns its name in the pool.

    As `Pool.add`, but for a pool that need not open: broken experts are skipped. With `require_key` the pool must be as
    its owner signed it; the addition invalidates that signature.
    """
    with locked(path):
        before = read_index(path, require_key)
        with joining(path, before, directory, name) as (index, expert):
            if index != before:
                check_widths([*_openable(path, index, expert.name), expert])
                write_index(path, index)
    return expert.name


def remove_expert(path: Path, name: str, require_key: Trust = UNSIGNED) -> str:
    """Take an expert out of the index, even one whose files are broken; returns the directory of its files in the pool.

    As `Pool.remove`, but for a pool that need not open. `require_key` as in `add_expert`.
    """
    with locked(path):
        index = read_index(path, require_key)
        left = tuple(record for record in index.experts if record.name != name)
        if len(left) == len(index.experts):
            known = ", ".join(record.name for record in index.experts)
            raise PoolError(f"an expert of the pool ({known})", repr(name), "Check the name.")
        write_index(path, index.model_copy(update={"experts": left}))
        return next(record.home for record in index.experts if record.name == name)


def is_unchanged(path: Path, name: str) -> bool:
    """Whether the files of the expert in `path/name` are as when they joined; True for one that has not joined."""
    index = read_index(path, UNSIGNED) if (path / POOL_FILE).exists() else None
    known = next((record for record in index.experts if record.home == name), None) if index else None
    try:
        return known is None or all(
            (path / name / file).is_file() and sha256(path / name / file) == record.sha256
            for file, record in known.files.items()
        )
    except UnfitFile:  # no expert's
        return False


def require_future(place: Path) -> None:
    """Raise `PoolError` for an expert's new directory that no pool takes up by its name, or not the one around it."""
    index = read_index(place.parent, UNSIGNED) if (place.parent / POOL_FILE).exists() else None
    require_home(place.name, [record.home for record in index.experts] if index else ())


def is_to_be_added(path: Path, name: str) -> bool:
    """Whether `path` is a pool that lacks the expert in `path/name`, or has it with files of another content."""
    if not (path / POOL_FILE).exists():
        return False
    homes = [record.home for record in read_index(path, UNSIGNED).experts]
    return name not in homes or not is_unchanged(path, name)


@contextmanager
def joining(
    path: Path, index: PoolIndex, directory: Path | str, name: str | None, fresh: bool = False
) -> Iterator[tuple[PoolIndex, Expert]]:
    """The index of the pool at `path` with one more expert, and that expert, verified; the block writes the index.

    `directory` is a directory's name inside the pool, or an expert's directory elsewhere, which is copied in under
    `name` (default: its card's); what was copied is removed again where the expert is refused, here or in the block.
    Raises `PoolError` where a name is taken, by another expert or by the pool's own files: by a `fresh` expert also its
    directory's.
    """
    home = _home(path, directory, name)
    known = next((record for record in index.experts if record.home == home), None)
    if known is not None and (fresh or home != str(directory)):
        alias = "" if known.name == home else f" as {known.name}"
        raise PoolError("a new expert", f"{home}, which is in the pool{alias}", "Remove it first, or rename it.")
    if known is None:
        require_home(home, [record.home for record in index.experts])
    name = name or (known.name if known is not None else home)
    check_name(name)
    if any(record.name == name and record is not known for record in index.experts):
        raise PoolError("a new name", f"{name}, which is in the pool", "Give another name.")
    comes = not os.path.lexists(path / home)
    if home != str(directory):
        _copy(Path(directory), path / home)
    try:
        yield _with_expert(path, index, home, name, known)
    except (GliderError, OSError):
        if comes and os.path.lexists(path / home):
            remove_entry(path / home)
        raise


def _with_expert(
    path: Path, index: PoolIndex, home: str, name: str, known: ExpertRecord | None
) -> tuple[PoolIndex, Expert]:
    """The index with the expert in `path/home` in place of the record known of it, and the expert."""
    expert = Expert.open(path / home, name)
    if index.embedder is None and expert.card.embedder is not None:
        index = index.model_copy(update={"embedder": expert.card.embedder})
    check_member(index, expert)
    expert.verify()
    record = record_of(expert, name, None if name == home else home)
    check_files(path, record)
    records = list(index.experts)
    if known is None:
        records.append(record)
    else:
        records[records.index(known)] = record
    return index.model_copy(update={"experts": tuple(records)}), expert


def _home(path: Path, directory: Path | str, name: str | None) -> str:
    """The directory inside the pool that an expert has, or will have."""
    place = Path(directory)
    if place.name == str(directory):  # a name
        check_name(str(directory))
        if (path / place).exists() or not place.is_dir():
            return str(directory)
    if not place.is_dir():
        expected, got = f"an expert's directory inside {path}, or elsewhere", f"{directory}, which is none"
        raise PoolError(expected, got, "Check the path.")
    if place.parent.resolve() == path.resolve():
        return place.name
    home = name or Expert.open(place).card.name
    check_name(home)
    if os.path.lexists(path / home):
        raise PoolError(f"a new directory in {path}", f"{home}, which is there", "Give another name with --as.")
    return home


def _copy(source: Path, place: Path) -> None:
    """Copy an expert's files, its card with the name of its new directory."""
    expert = Expert.open(source)
    with new_directory(place) as partial:
        for file in EXPERT_FILES:
            if file != CARD_FILE:
                copy_file(source / file, partial / file)
        write_json(partial / CARD_FILE, expert.card.model_copy(update={"name": place.name}).model_dump(mode="json"))
        Expert.open(partial).verify()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a pool's lock; what dead processes left behind is removed."""
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


def read_index(path: Path, require_key: Trust) -> PoolIndex:
    """The index, read once: where a signature is required, the parsed bytes are the signed ones."""
    content = read_pool_file(path)
    if (keys := trusted_keys(require_key)) is not None:
        require_signature(content, path, keys)
    return parsed_index(content, path / POOL_FILE)


def check_name(name: str) -> None:
    if re.fullmatch(NAME, name) is None:
        raise PoolError("a name of letters, digits, '.', '_' and '-'", repr(name), "Choose another name.")


def check_files(pool: Path, record: ExpertRecord) -> None:
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
                "Get the file anew, or take the expert out with `glider pool remove`; if you changed it on purpose, "
                "add it again with `glider pool add`. The others can be asked one by one (--router single:NAME).",
            )


def check_member(index: PoolIndex, expert: Expert) -> None:
    name, home = expert.name, expert.directory.name
    if expert.card.name != home:
        raise PoolError(
            f"the card of {home} in {expert.directory}", f"that of {expert.card.name}", "Rename the directory."
        )
    check_base(index.base, expert)
    mine = expert.card.embedder
    if mine is not None and not mine.matches(index.embedder):
        raise PoolError(
            f"instruction embeddings by the pool's embedder ({index.embedder and index.embedder.embedder})",
            f"{name}, embedded by {mine.embedder} (prefix {mine.prefix!r}, {mine.dimension} wide) by its {CARD_FILE}",
            "Describe the expert again with the pool's embedder.",
        )


def check_base(base: BaseIdentity, expert: Expert) -> None:
    """Raise `PoolError` for an expert that was made for another base model."""
    if not same_base(base, expert.card.base):
        raise PoolError(
            f"experts for the pool's base model {base.model_id} ({base.hash})",
            f"{expert.name}, made for {expert.card.base.model_id} ({expert.card.base.hash}) by its {CARD_FILE}",
            "Leave it out, or train it for this base.",
        )


def check_widths(experts: Sequence[Expert]) -> None:
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


def record_of(expert: Expert, name: str, directory: str | None = None) -> ExpertRecord:
    return ExpertRecord(name=name, directory=directory, files=expert.record())
