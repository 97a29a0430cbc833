"""A safetensors file whose tensors are read a few at a time into memory of our own, each checked by its digest.

A map of the file would be shorter, but what is mapped is another's to change: cut short it ends the process, written
over it changes tensors that were checked. So bytes are copied by `pread`, and what is handed out is what was checked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from glider.errors import ExpertError
from glider.files.descriptors import Descriptor, descriptor_of, hold
from glider.files.dtypes import FLOATING, torch_dtype
from glider.files.headers import MOST_TENSORS, Header, header_in, header_of, reading
from glider.files.opening import read_exactly

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DIGEST_BYTES = 16  # of SHA-256: nobody finds another tensor with the same
_TOGETHER = 8 << 20  # bytes that a pass over the whole file reads at once
_AGAIN = (
    "Get the file anew, or take the expert out with `glider pool remove`; if you changed it on purpose, add it again "
    "with `glider pool add`."
)
LARGEST_VALUE = 1e9  # of what an expert holds


class TensorFile:
    """An opened file. What replaces it on disk does not change it, while its descriptor is among those held.

    `record` are the digests that `digests` made when the file was known to be right, or `sha256` is that of all of it.
    Without either the file is what it is when it is first read, and must stay so.
    """

    held: Descriptor | None = None

    def __init__(self, path: Path, record: str | None = None, sha256: str | None = None, owner: str = ""):
        self.path, self._sha256, self._lock = path, sha256, threading.Lock()
        self._label = f"{path}{owner and f' of {owner}'}"
        with reading(path):
            descriptor = Descriptor(path)
            self.header = header_of(descriptor.number, path)
        hold(self, descriptor)
        self._recorded = record is not None
        self._digests = None if record is None else self._of_record(record)

    def expect(self, sha256: str) -> None:
        """Check the whole file against this digest at the next read, unless the file came with its own digests."""
        if not self._recorded and self._sha256 != sha256:
            self._sha256, self._digests = sha256, None

    def digests(self) -> str:
        """The digests of the header and of each tensor, in the order of the file, in base64."""
        known = self._digests or self._pass(finite=False)[0]
        whole = b"".join([self.header.sha256[:DIGEST_BYTES], *(known[name] for name in _ordered(self.header))])
        return base64.b64encode(whole).decode("ascii")

    def read(self, names: Iterable[str]) -> list[Tensor]:
        """Tensors by name. Raises `ExpertError` for a tensor that changed."""
        with self._lock:  # of several threads one passes over the file
            if self._digests is None:
                self._pass(finite=False)
        with reading(self.path):
            descriptor = self._descriptor()
            return [self._read(descriptor.number, name) for name in names]

    def not_finite(self) -> str | None:
        """Check the whole file; the first tensor with NaN or infinity in it, or None.

        Raises `ExpertError` where the content is not what it was.
        """
        return self._pass(finite=True)[1]

    def _descriptor(self) -> Descriptor:
        def check(number: int) -> None:
            if header_of(number, self.path).sha256 != self.header.sha256:
                raise self._changed("its header", "another one")

        return descriptor_of(self, check)

    def _read(self, descriptor: int, name: str) -> Tensor:
        content = read_exactly(descriptor, *self.header.places[name])
        assert self._digests is not None
        if (got := _digest(content)) != self._digests[name]:
            raise self._changed_tensor(name, self._digests[name], got)
        return _values(content, torch_dtype(self.header.dtypes[name])).view(self.header.shapes[name])

    def _pass(self, finite: bool) -> tuple[dict[str, bytes], str | None]:
        """Read all of the file once: its digests, compared with those that are known, and what is not finite."""
        whole, digests, infinite = hashlib.sha256(), dict[str, bytes](), None
        hashed = self._digests is None and self._sha256 is not None
        with reading(self.path):
            descriptor = self._descriptor()
            if hashed:
                whole.update(read_exactly(descriptor.number, 0, 8 + self.header.length))
            for names in self._groups():
                begin, end = self.header.places[names[0]][0], sum(self.header.places[names[-1]])
                content = read_exactly(descriptor.number, begin, end - begin)
                if hashed:
                    whole.update(content)
                view = memoryview(content)
                for name in names:
                    at, length = self.header.places[name]
                    digests[name] = _digest(view[at - begin : at - begin + length])
                if finite and infinite is None:
                    infinite = self._first_not_finite(content, begin, names)
        if hashed and (got := whole.hexdigest()) != self._sha256:
            expected = f"{self._label} unchanged since it joined the pool (sha256 {str(self._sha256)[:12]})"
            raise ExpertError(expected, f"sha256 {got[:12]}", _AGAIN)
        for name, known in (self._digests or {}).items():
            if digests[name] != known:
                raise self._changed_tensor(name, known, digests[name])
        self._digests = digests
        return digests, infinite

    def _groups(self) -> Iterator[list[str]]:
        """All tensors in the order of the file, some megabytes together."""
        group, size = [], 0
        for name in _ordered(self.header):
            group.append(name)
            size += self.header.places[name][1]
            if size >= _TOGETHER:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _first_not_finite(self, content: bytearray, begin: int, names: list[str]) -> str | None:
        """Neighbours of one dtype are looked at together."""
        for run in self._runs(names):
            first, end = self.header.places[run[0]][0] - begin, sum(self.header.places[run[-1]]) - begin
            dtype = torch_dtype(self.header.dtypes[run[0]])
            bounds = _values(content, dtype, first, end).aminmax()  # both are NaN where a value is
            if all(map(sane, bounds)):  # what is computed is float32 or narrower
                continue
            for name in run:
                at = self.header.places[name][0] - begin
                values = _values(content, dtype, at, at + self.header.places[name][1])
                if not sane(values):
                    return name
        return None

    def _runs(self, names: list[str]) -> Iterator[list[str]]:
        """The floating-point tensors, neighbours of one dtype together."""
        run: list[str] = []
        for name in names:
            dtype, (begin, length) = self.header.dtypes[name], self.header.places[name]
            if dtype not in FLOATING or not length:
                continue
            if run and self.header.dtypes[run[0]] == dtype and sum(self.header.places[run[-1]]) == begin:
                run.append(name)
                continue
            if run:
                yield run
            run = [name]
        if run:
            yield run

    def _of_record(self, record: str) -> dict[str, bytes]:
        names = _ordered(self.header)
        try:
            whole = base64.b64decode(record, validate=True)
        except (binascii.Error, ValueError):
            whole = b""
        if len(whole) != DIGEST_BYTES * (len(names) + 1):
            raise self._changed(f"{len(names)} tensors", f"digests of {max(0, len(whole) // DIGEST_BYTES - 1)}")
        if whole[:DIGEST_BYTES] != self.header.sha256[:DIGEST_BYTES]:
            raise self._changed("its header", "another one")
        parts = [whole[i : i + DIGEST_BYTES] for i in range(DIGEST_BYTES, len(whole), DIGEST_BYTES)]
        return dict(zip(names, parts, strict=True))

    def _changed_tensor(self, name: str, expected: bytes, got: bytes) -> ExpertError:
        return self._changed(f"the tensor {name} of sha256 {expected.hex()[:12]}", f"sha256 {got.hex()[:12]}")

    def _changed(self, expected: str, got: str) -> ExpertError:
        return ExpertError(f"{self._label} unchanged, with {expected}", got, _AGAIN)


def tensors_in(content: bytearray, most: int = MOST_TENSORS) -> dict[str, Tensor]:
    """The tensors of a file that was read whole, and perhaps checked; `ValueError` says why there are none.

    They lie in `content`, which nobody is to change any more.
    """
    header = header_in(content, most)
    return {
        name: _values(content, torch_dtype(header.dtypes[name]), begin, begin + length).view(header.shapes[name])
        for name, (begin, length) in header.places.items()
    }


def tensors_at(descriptor: int, header: Header) -> dict[str, Tensor]:
    """The tensors of an opened file with this header, each in memory of its own; `UnfitFile` where the file ends."""
    return {
        name: _values(read_exactly(descriptor, *place), torch_dtype(header.dtypes[name])).view(header.shapes[name])
        for name, place in header.places.items()
    }


def _ordered(header: Header) -> list[str]:
    """Names in the order of the file; empty tensors have no place of their own, and so go by name."""
    return sorted(header.places, key=lambda name: (*header.places[name], name))


def _digest(content: bytearray | memoryview) -> bytes:
    return hashlib.sha256(content).digest()[:DIGEST_BYTES]


def _values(content: bytearray, dtype: torch.dtype, begin: int = 0, end: int | None = None) -> Tensor:
    """Bytes as values in a row, copied where they lie at no multiple of their size."""
    import torch

    end = len(content) if end is None else end
    if begin == end:
        return torch.empty(0, dtype=dtype)
    if begin % dtype.itemsize:
        content, begin, end = content[begin:end], 0, end - begin
    return torch.frombuffer(content, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=begin)


def sane(values: Tensor) -> bool:
    """Whether arithmetic with these values stays finite: no trained weight comes near the bound."""
    if not values.numel():
        return True
    least, largest = map(float, values.aminmax())  # both are NaN where a value is
    return -LARGEST_VALUE <= least <= largest <= LARGEST_VALUE
