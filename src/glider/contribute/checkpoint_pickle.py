"""Checks what a published checkpoint's pickle would build, before torch builds it.

`torch.load(weights_only=True)` runs no code of a file. But it takes lengths for memory to fill, keys that are hashed
for ever and texts that are copied a million times. Here the pickle is scanned without resolving its names: anything but
a mapping of names to tensors, of about the size of its file, is refused.
"""

import io
import os
import pickle
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from glider.files.opening import UnfitFile, opened, read_exactly

_LEAST = 1 << 20  # bytes of a pickle that any file may have
_MOST = 256 << 20  # that of all 166 experts of PHATGOOSE's largest file has some fifty million
_SHARE = 16  # and one in so many of the file's; of a real checkpoint it is one in sixty
_PARTS_OF_OLD = 5  # pickles in a file from before archives: magic number, version, machine, content, storages
_InPython: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]  (that in C fills what it counts)


class _Storage:
    """Stands for a type of storage, and for a storage."""


def check_pickle(path: Path) -> None:
    """Raise `UnfitFile` for a checkpoint whose pickle is more than names and tensors, or larger than its file allows.

    Raises `OSError` as `opened`, and other errors for a damaged pickle.
    """
    with opened(path) as descriptor:
        status = os.fstat(descriptor)
    _check(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=512)
def _check(path: Path, status: tuple[int, int, int, int]) -> None:
    """Once for a file that is opened for each of its experts."""
    size = status[2]
    longest = min(max(_LEAST, size // _SHARE), _MOST)
    with opened(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        if zipfile.is_zipfile(file):
            _go_through([_in_archive(file, longest)], size)
            return
        for length in (min(size, _LEAST), min(size, longest)):  # of a file of holes a little tells enough
            try:
                _go_through([bytes(read_exactly(descriptor, 0, length))] * _PARTS_OF_OLD, size)
                return
            except EOFError as fault:
                if length == size:
                    raise
                if length == longest:
                    raise UnfitFile(f"a pickle of more than {longest} bytes in a file of {size}") from fault


def _go_through(contents: list[bytes], size: int) -> None:
    """Read a pickle of each content, each from where the one before it ended."""
    at = 0
    for content in contents:
        stream = io.BytesIO(content)
        stream.seek(at)
        _Reader(stream, size).load()
        at = stream.tell()


def _in_archive(file: Any, longest: int) -> bytes:
    """The one pickle of an archive that all readers of archives read alike."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename.lower() for entry in entries]
        pickles = [entry for entry in entries if entry.filename.lower().rpartition("/")[2] == "data.pkl"]
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UnfitFile("a compressed archive")  # it may grow a thousandfold in memory
        if len(set(names)) < len(names) or len(pickles) != 1 or min(entry.header_offset for entry in entries):
            raise UnfitFile("another archive than torch writes")
        if pickles[0].file_size > longest:
            raise UnfitFile(f"a pickle of {pickles[0].file_size} bytes, where {longest} are the most")
        return archive.read(pickles[0])


class _Reader(_InPython):
    """Builds containers of strings and numbers; what would be a tensor is nothing, and is checked."""

    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def __init__(self, stream: io.BytesIO, size: int):
        super().__init__(stream)
        self._size, self._bytes = size, 0
        self._storages: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return _Storage()
        if (module, name) == ("collections", "OrderedDict"):
            return _empty
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")):
            return _nothing
        raise UnfitFile(f"a pickle that holds {module[:60]}.{name[:60]}")

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise UnfitFile("a storage in no form of torch's")
        key, count = pid[2], pid[4]
        if type(key) is not str or type(count) is not int or count < 0:
            raise UnfitFile("a storage in no form of torch's")
        if key not in self._storages:
            self._storages.add(key)
            self._bytes += count  # each value has a byte at least
        if self._bytes > self._size:
            raise UnfitFile(f"storages of {self._bytes} values or more in a file of {self._size} bytes")
        return _Storage()

    def load_setitem(self) -> None:
        _require_name(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            _require_name(key)
        super().load_setitems()

    def load_dict(self) -> None:
        for key in self.stack[::2]:
            _require_name(key)
        super().load_dict()

    def refuse(self) -> None:
        raise UnfitFile("a set")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch |= dict.fromkeys((pickle.EMPTY_SET[0], pickle.ADDITEMS[0], pickle.FROZENSET[0]), refuse)


def _require_name(key: object) -> None:
    """Keys are hashed, and a tuple of tuples of one and the same tuple takes for ever."""
    if type(key) is not str and type(key) is not int:
        raise UnfitFile(f"a key that is a {type(key).__name__}")


class _Mapping(dict):  # with attributes, as that of `torch.nn.Module.state_dict` has
    pass


def _empty(*parts: object) -> Any:
    if parts:
        raise UnfitFile("an OrderedDict with a content from elsewhere")
    return _Mapping()


def _nothing(*parts: object) -> Any:
    if not parts or not isinstance(parts[0], _Storage):
        raise UnfitFile("a tensor in no form of torch's")
    return _Storage()
