"""Memory that a job has freed, given back to the system."""

import ctypes
import gc
import sys
import time

_PAUSE = 1.0  # seconds; thousands of jobs that fail at once would wait for it longer than for all else
_last = -_PAUSE


def give_back() -> None:
    """Collect what only refers to itself, and let glibc return its free pages; another C library keeps its own way.

    glibc returns what lies free at the end of a heap alone. A job frees its model, but leaves small things behind it,
    so that the memory of this process would grow with every training. Nothing within a second of the last time, in
    which no job has made much.
    """
    global _last
    if time.monotonic() - _last < _PAUSE:
        return
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    _last = time.monotonic()
