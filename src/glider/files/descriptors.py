"""The descriptors of files that are read from time to time: as many as a process can well spare.

A system allows a process 256 to 1024 of them, and a pool may have more experts. Those used last are held, so that what
replaces a file on disk does not change it; another one is opened again by its path.
"""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from glider.files.opening import open_descriptor

_FEWEST = 8
_SHARE = 4  # of the descriptors that the process may have, one in so many


class Descriptor:
    """A descriptor of a regular file that is closed when nothing holds it any more."""

    def __init__(self, path: Path):
        self.number = open_descriptor(path)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone when Python ends
        if hasattr(self, "number"):
            close(self.number)


class Holder(Protocol):
    """A file that is read by a descriptor."""

    path: Path
    held: Descriptor | None


_lock = threading.RLock()  # a collection of garbage within may come back here
_used: "OrderedDict[int, weakref.ref[Holder]]" = OrderedDict()  # by id, those used last at the end


def hold(file: Holder, descriptor: Descriptor) -> None:
    """Let a file keep its descriptor; the least recently used file gives up its own."""
    with _lock:
        file.held = descriptor
        _used[id(file)] = weakref.ref(file)
        _used.move_to_end(id(file))
        if len(_used) <= (most := _most()):
            return
        for key in [key for key, reference in _used.items() if reference() is None]:
            del _used[key]
        while len(_used) > most:
            if (coldest := _used.popitem(last=False)[1]()) is not None:
                coldest.held = None


def descriptor_of(file: Holder, check: Callable[[int], object]) -> Descriptor:
    """The descriptor of a file. After reopening it may be another file's; then `check` raises."""
    with _lock:
        if (known := file.held) is not None:
            _used.move_to_end(id(file))
            return known
    descriptor = Descriptor(file.path)
    check(descriptor.number)
    hold(file, descriptor)
    return descriptor


def _most() -> int:
    try:
        import resource
    except ImportError:  # no such limit
        return 256
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(_FEWEST, min(soft if soft > 0 else 1 << 16, 1 << 16) // _SHARE)
