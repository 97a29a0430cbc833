"""A safetensors file whose tensors are read from a map of it, a few at a time, and given back."""

import ctypes
import mmap
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from glider.experts.headers import damaged, read_header
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

    def _read(self, name: str) -> Tensor:
        dtype, shape, (begin, length) = self.header.dtypes[name], self.header.shapes[name], self.header.places[name]
        if begin % dtype.itemsize == 0:
            strides = torch.empty(shape, device="meta").stride()
            return torch.empty(0, dtype=dtype).set_(self._map, begin // dtype.itemsize, shape, strides)
        return torch.empty(0, dtype=torch.uint8).set_(self._map, begin, (length,), (1,)).clone().view(dtype).view(shape)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
