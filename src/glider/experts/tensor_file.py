"""A safetensors file whose tensors are read from a map of it, a few at a time, and given back."""

import mmap
from collections.abc import Iterable
from pathlib import Path

import torch

from glider.errors import ExpertError
from glider.experts.headers import damaged, read_header
from glider.shapes import Tensor


class TensorFile:
    """A mapped file. What replaces it on disk later does not change it.

    Mapped pages that were read count as resident memory until `release`.
    """

    def __init__(self, path: Path):
        self.path, self.header = path, read_header(path)
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise ExpertError(f"the file {path}", "no such file", "Get the expert anew; it is incomplete.") from None
        if self._map.size() < max((begin + length for begin, length in self.header.places.values()), default=0):
            raise damaged(path, f"{self._map.size()} bytes, cut after it was opened")

    def read(self, names: Iterable[str]) -> list[Tensor]:
        """Tensors by name, as views of the map."""
        header = self.header
        return [
            torch.frombuffer(
                self._map, dtype=header.dtypes[name], offset=header.places[name][0], count=_items(header.shapes[name])
            ).view(header.shapes[name])
            for name in names
        ]

    def release(self) -> None:
        """Let the system take back the pages that were read; a tensor that is still in use reads them again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _items(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
