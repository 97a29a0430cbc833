"""Files of experts' spectra: one for each adapter file, found by its content, deleted when long unused."""

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
    """The file of an adapter's spectra: its name is a hash of the content, so that it is never out of date."""
    return spectra_directory() / f"{adapter_sha256}-{FORMAT}.safetensors"


def stored_spectra() -> list[Path]:
    """All files of spectra, of every format."""
    return sorted(spectra_directory().glob("*.safetensors"))


def note_use(file: Path) -> None:
    """Record a file's last use in its time, to the day."""
    with suppress(OSError):  # a cache that is read-only, or cleared in between: nothing is lost
        if time.time() - file.stat().st_mtime > _DAY:
            os.utime(file)


def forget_unused() -> None:
    """Delete files that no pool has used for `UNUSED_DAYS`."""
    oldest = time.time() - UNUSED_DAYS * _DAY
    for file in stored_spectra():
        with suppress(FileNotFoundError):  # another process was faster
            if file.stat().st_mtime < oldest:
                file.unlink()


def clear_spectra() -> int:
    """Delete all; returns how many there were."""
    files = stored_spectra()
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)
