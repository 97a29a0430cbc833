"""Pickles, archives and broken files: nothing of them is run, and none is believed."""

import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glider.contribute.published_format import (
    open_checkpoint,
    read_embeddings,
)
from glider.errors import ExpertError, GliderError

from .checkpoints import NAMES, Tensors, save_phatgoose


class Exploding:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_anything_else_is_not_run(zipped: bool, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "a_best.pt"
    if zipped:
        torch.save({"x": Exploding(mark)}, file)
    else:
        file.write_bytes(pickle.dumps({"x": Exploding(mark)}))
    with pytest.raises(ExpertError, match="nothing but tensors") as refused:
        open_checkpoint(file)
    assert not mark.exists()
    assert "weights_only" not in str(refused.value) and refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 and no more", b"\x80\x02}q\x00.", b"text\n", b"version https://git-lfs.github.com/spec/v1\n"],
)
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a_best.pt").write_bytes(content)
    with pytest.raises(ExpertError, match=r"a_best\.pt"):
        next(open_checkpoint(tmp_path).experts())


def test_a_truncated_file_is_refused(experts: list[Tensors], tmp_path: Path) -> None:
    file = save_phatgoose(experts, tmp_path / "best.pt")
    file.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(ExpertError, match=r"best\.pt"):
        open_checkpoint(file, NAMES)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (torch.zeros(1).expand(1 << 17, 1 << 17), "no larger than their file"),
        (torch.empty(1 << 20, 1 << 20, device="meta"), "nothing but tensors"),
    ],
)
def test_a_tensor_larger_than_its_file_is_refused(value: torch.Tensor, wanted: str, tmp_path: Path) -> None:
    """The first one is four bytes in the file and 64 GB as soon as it is copied."""
    torch.save({"base_model.model.x.lora_A.default.weight": value}, tmp_path / "a_best.pt")
    for read in (open_checkpoint, read_embeddings):
        with pytest.raises(ExpertError, match=rf"{wanted}.* in .*a_best\.pt"):
            read(tmp_path / "a_best.pt")


@pytest.mark.parametrize("zipped", [True, False])
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=4), kept=st.floats(0, 1)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_checkpoint_is_read_or_refused(
    zipped: bool, changes: list[tuple[float, bytes]], kept: float, tmp_path: Path
) -> None:
    """Bytes written over at any place, the end cut off; anything but a `GliderError` comes out."""
    part = {"A.default.weight": torch.ones(1, 4), "B.default.weight": torch.ones(4, 1), "gate.default": torch.ones(4)}
    tensors = {f"base_model.model.encoder.x.lora_{key}": value for key, value in part.items()}
    file = tmp_path / "a_best.pt"
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    content = bytearray(file.read_bytes())
    for where, more in changes:
        at = int(where * len(content))
        content[at : at + len(more)] = more
    file.write_bytes(content if kept > 0.5 else content[: int(2 * kept * len(content))])
    for read in (lambda: list(open_checkpoint(file).experts()), lambda: read_embeddings(file)):
        with suppress(GliderError):
            read()


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match="no such file"):
        open_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ExpertError, match=r"<task>_best\.pt"):
        open_checkpoint(tmp_path)


def _pickled(file: Path, content: bytes) -> Path:
    """An archive as torch writes it, with this pickle in place of its own."""
    torch.save({"t": torch.ones(768)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, content if name.endswith("data.pkl") else part)
    return file


_PAIRS = b"X\x01\x00\x00\x00a" + b"2\x86" * 60  # of pairs of pairs: hashed, or written out, for ever


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\nbytearray\n\x8a\x05" + (1 << 38).to_bytes(5, "little") + b"\x85R.",
        b"ctorch\nTensor\n\x8a\x05" + (1 << 38).to_bytes(5, "little") + b"\x85R.",
        b"ccollections\nCounter\nX\x05\x00\x00\x00aaaaa\x85R.",
        b"ccollections\nOrderedDict\n](X\x01\x00\x00\x00aK\x01\x86e\x85R.",
        b"}" + _PAIRS + b"K\x01s.",
        b"}(" + _PAIRS + b"K\x01u.",
        b"(" + _PAIRS + b"K\x01d.",
        b"\x8f(" + _PAIRS + b"\x90.",
        b"}(" + b"".join(b"X\x06\x00\x00\x00%06dK\x01" % number for number in range(200_000)) + b"u.",
    ],
    ids=["bytes", "tensor", "counter", "copies", "key", "keys", "old keys", "set", "names"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_grows_or_never_ends_is_refused(content: bytes, zipped: bool, tmp_path: Path) -> None:
    """What runs no code may still fill the memory, or take for ever: in torch's own reader all of these do."""
    file, whole = tmp_path / "a_best.pt", b"\x80\x02" + content
    if zipped:
        _pickled(file, whole)
    else:
        file.write_bytes(whole)
    for read in (open_checkpoint, read_embeddings):
        with pytest.raises(ExpertError, match="nothing but tensors"):
            read(file)


def test_an_archive_that_readers_read_unlike_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a_best.pt"
    torch.save({"t": torch.ones(768)}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("other/DATA.PKL", b"\x80\x02}.")
    with pytest.raises(ExpertError, match="another archive"):
        read_embeddings(file)


def test_many_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    """A hundred names of the whole file were a hundred copies of it."""
    one = torch.ones(64, 768)
    torch.save({f"t{number}": one for number in range(100)}, tmp_path / "t.pt")
    with pytest.raises(ExpertError, match="no larger than their file"):
        read_embeddings(tmp_path / "t.pt")
    torch.save({f"t{number}": one for number in range(3)}, tmp_path / "t.pt")
    assert len(read_embeddings(tmp_path / "t.pt")) == 3
