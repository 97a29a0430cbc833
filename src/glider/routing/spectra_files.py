"""The files that keep experts' spectra: one for each adapter file, found by its content, gone when long unused."""

import os
import time
from contextlib import suppress
from pathlib import Path

from glider.config import cache_directory

FORMAT = 1
UNUSED_DAYS = 30  # experts leave pools, and no pool knows of the others; a spectrum is made again in milliseconds
_DAY = 24 * 3600


def spectra_directory() -> Path:
    """Where spectra are kept."""
    return cache_directory() / "spectra"


def spectra_file(adapter_sha256: str) -> Path:
    """Where the spectra of an adapter file are kept: the name tells the content, so that none can be out of date."""
    return spectra_directory() / f"{adapter_sha256}-{FORMAT}.safetensors"


def kept_files() -> list[Path]:
    """All files of spectra, of every format."""
    return sorted(spectra_directory().glob("*.safetensors"))


def note_use(file: Path) -> None:
    """Let a file's time tell its last use, to the day."""
    with suppress(OSError):  # a cache that is read-only, or cleared in between: nothing is lost
        if time.time() - file.stat().st_mtime > _DAY:
            os.utime(file)


def forget_unused() -> None:
    """Delete what no pool has asked for in `UNUSED_DAYS`."""
    oldest = time.time() - UNUSED_DAYS * _DAY
    for file in kept_files():
        with suppress(FileNotFoundError):  # another process was faster
            if file.stat().st_mtime < oldest:
                file.unlink()


def clear_spectra() -> int:
    """Delete all; returns how many there were."""
    files = kept_files()
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)
