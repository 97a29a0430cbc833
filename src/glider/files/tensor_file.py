"""A safetensors file whose tensors are read from a map of it, a few at a time, and given back."""

import ctypes
import mmap
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from glider.files.headers import damaged, read_header
from glider.shapes import Tensor


class TensorFile:
    """A mapped file. What replaces it on disk later does not change it.

    PyTorch makes the map: Python's own would hold a file descriptor for each file, and a system allows a process 256
    to 1024 of them. Mapped pages that were read count as resident memory until `release`.
    """

    def __init__(self, path: Path):
        self.path, self.header = path, read_header(path)
        size = max((begin + length for begin, length in self.header.places.values()), default=0)
        try:
            self._map: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
        except RuntimeError as fault:
            raise damaged(path, f"changed while it was opened: {str(fault).splitlines()[0]}") from fault

    def read(self, names: Iterable[str]) -> list[Tensor]:
        """Tensors by name, as views of the map, or copies of what lies at no multiple of its item size."""
        return [self._read(name) for name in names]

    def release(self) -> None:
        """Let the system take back the pages that were read; a tensor that is still in use reads them again.

        What was written into a tensor, and so into no file, is lost.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            _libc().madvise(self._map.data_ptr(), self._map.nbytes(), mmap.MADV_DONTNEED)

    def not_finite(self) -> str | None:
        """The first tensor with NaN or infinity in it, or None. Neighbours of one dtype are looked at together."""
        for run in self._runs():
            first, last = self.header.places[run[0]], self.header.places[run[-1]]
            whole = self._values(self.header.dtypes[run[0]], first[0], sum(last) - first[0])
            if not all(bound.isfinite() for bound in whole.aminmax()):  # both are NaN where a value is
                return next(name for name in run if not torch.isfinite(self._read(name)).all())
        return None

    def _runs(self) -> list[list[str]]:
        """The floating-point tensors, those of one dtype that lie end to end together."""
        runs: list[list[str]] = []
        for name, dtype in sorted(self.header.dtypes.items(), key=lambda item: self.header.places[item[0]]):
            begin, length = self.header.places[name]
            if not dtype.is_floating_point or not length:
                continue
            before = runs[-1][-1] if runs else None
            if before and self.header.dtypes[before] == dtype and sum(self.header.places[before]) == begin:
                runs[-1].append(name)
            else:
                runs.append([name])
        return runs

    def _values(self, dtype: torch.dtype, begin: int, length: int) -> Tensor:
        """So many bytes of the file, as values in a row."""
        if begin % dtype.itemsize == 0:
            return torch.empty(0, dtype=dtype).set_(
                self._map, begin // dtype.itemsize, (length // dtype.itemsize,), (1,)
            )
        return torch.empty(0, dtype=torch.uint8).set_(self._map, begin, (length,), (1,)).clone().view(dtype)

    def _read(self, name: str) -> Tensor:
        return self._values(self.header.dtypes[name], *self.header.places[name]).view(self.header.shapes[name])


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
