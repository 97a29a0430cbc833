"""Files that appear whole or not at all."""

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from glider.errors import ExpertError

LARGEST_JSON = 64 << 20
_DEEPEST_JSON = 64


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Parse a stranger's JSON file; `ValueError` says what is wrong with it (names twice, too large, too deep)."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("no regular file")
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path.stat().st_size} bytes")
    value = json.loads(path.read_text("utf8"), object_pairs_hook=_unique)
    layer, depth = [value], 0
    while layer:
        depth += 1
        if depth > _DEEPEST_JSON:
            raise ValueError("too deep nesting")
        layer = [x for v in layer for x in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
    return value


def refuse_links_out(directory: Path, files: Iterable[str]) -> None:
    """Raise `ExpertError` for a file that is a link out of its directory."""
    for file in files:
        place = directory / file
        if place.is_symlink() and os.path.realpath(place.parent) != str(Path(os.path.realpath(place)).parent):
            raise ExpertError(f"the file {place} itself", "a link out of the directory", "Copy the file.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise ValueError(f"the name {name[:60]!r} twice")
        seen[name] = value
    return seen


def canonical_json(value: Any) -> str:
    """The one text of a JSON value that hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    write_file(path, lambda partial: partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf8"))


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, then put it in place; on any failure nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        write(partial)
        _flush(partial)
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file; a full disk is the `OSError` that it is, not a serialisation error."""
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as fault:
        code = re.search(r"os error (\d+)", str(fault))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from fault


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that becomes `path` when the block ends well, and vanishes when it does not.

    An existing `path` is replaced only after the new content is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield partial
        for file in partial.iterdir():
            if file.is_file():
                _flush(file)
        partial.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.replace(old / "replaced")
            partial.replace(path)
            shutil.rmtree(old)
        else:
            partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
