"""Tensors read into memory of our own, each checked as it is read: nobody can change them, or end the process."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glider.errors import ExpertError
from glider.files.tensor_file import TensorFile

SAVED = {"a": torch.arange(15.0).view(3, 5), "b": torch.randn(7).bfloat16(), "none": torch.zeros(0, 4)}
SAVED |= {"one": torch.tensor(2), "flag": torch.tensor([True, False])}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(SAVED, tmp_path / "t.safetensors")
    return tmp_path / "t.safetensors"


@pytest.mark.parametrize("recorded", [False, True])
def test_tensors_are_what_was_saved(path: Path, recorded: bool) -> None:
    file = TensorFile(path, TensorFile(path).digests() if recorded else None)
    for name, tensor in zip(SAVED, file.read(SAVED), strict=True):
        assert tensor.dtype == SAVED[name].dtype and torch.equal(tensor, SAVED[name])


def test_a_tensor_at_an_odd_place_is_copied_to_an_even_one(tmp_path: Path) -> None:
    """No writer makes such a file; vector instructions on a tensor in it would end the process."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    header += b" " * (1 - (8 + len(header)) % 4)
    (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<4f", 1, 2, 3, 4))
    file = TensorFile(tmp_path / "t.safetensors")
    assert file.header.places["a"][0] % 4 != 0
    (a,) = file.read(["a"])
    assert torch.equal(a, torch.tensor([[1.0, 2.0], [3.0, 4.0]])) and a.data_ptr() % 4 == 0


def test_writing_into_a_tensor_changes_no_file(path: Path) -> None:
    before = path.read_bytes()
    file = TensorFile(path)
    file.read(["a"])[0].zero_()
    assert path.read_bytes() == before and torch.equal(file.read(["a"])[0], SAVED["a"])


@pytest.mark.parametrize("length", [0, 4, 100, -1])
@pytest.mark.parametrize("read", [False, True])
def test_a_file_cut_short_is_an_error(path: Path, length: int, read: bool) -> None:
    """Of a map of the file the system would end the process (SIGBUS)."""
    file = TensorFile(path)
    if read:
        file.read(["a"])
    os.truncate(path, length if length >= 0 else path.stat().st_size + length)
    with pytest.raises(ExpertError, match=r"t\.safetensors"):
        file.read(SAVED)


def test_a_file_that_is_written_over_is_an_error(path: Path) -> None:
    """Tensors of a map that was checked would have changed silently."""
    file, recorded = TensorFile(path), TensorFile(path, TensorFile(path).digests())
    file.read(["one"])
    content = bytearray(path.read_bytes())
    begin = file.header.places["a"][0]
    content[begin + 3] ^= 1
    path.write_bytes(content)
    for one in (file, recorded):
        with pytest.raises(ExpertError, match="the tensor a of sha256"):
            one.read(["a"])
        assert torch.equal(one.read(["b"])[0], SAVED["b"])
        with pytest.raises(ExpertError, match="the tensor a of sha256"):
            one.not_finite()


def test_what_replaces_a_file_does_not_change_it(path: Path, tmp_path: Path) -> None:
    file = TensorFile(path)
    save_file({name: tensor.float() + 1 for name, tensor in SAVED.items()}, tmp_path / "other")
    (tmp_path / "other").replace(path)
    assert torch.equal(file.read(["a"])[0], SAVED["a"])


def test_a_record_of_another_file_is_refused(path: Path, tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "other")
    for record in (TensorFile(tmp_path / "other").digests(), "", "no base64!", "AAAA"):
        with pytest.raises(ExpertError, match="unchanged"):
            TensorFile(path, record)


def test_the_hash_of_the_whole_file_is_checked_before_the_first_tensor(path: Path) -> None:
    with pytest.raises(ExpertError, match="sha256 000000000000"):
        TensorFile(path, sha256="0" * 64).read(["a"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    bad = torch.ones(9)
    bad[4] = value
    save_file({"a": torch.ones(3), "b": bad, "c": torch.ones(2).half()}, tmp_path / "t.safetensors")
    assert TensorFile(tmp_path / "t.safetensors").not_finite() == "b"
    save_file({"a": torch.ones(3), "b": torch.full((2,), 1e300, dtype=torch.float64)}, tmp_path / "t.safetensors")
    assert TensorFile(tmp_path / "t.safetensors").not_finite() == "b"  # infinite in what is computed with


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="tells its descriptors otherwise")
def test_a_pool_may_have_more_experts_than_a_process_may_have_files(path: Path) -> None:
    """A descriptor each: a pool of a thousand would end at the usual limit of 1024."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 40, hard))
    try:
        files = [TensorFile(path) for _ in range(90)]
        assert all(torch.equal(file.read(["a"])[0], SAVED["a"]) for file in files)
        save_file({"a": torch.ones(4)}, path)  # another file in the place of those that were closed
        for file in files[:40]:
            for _ in range(2):
                with pytest.raises(ExpertError, match="its header"):
                    file.read(["a"])
        assert all(torch.equal(file.read(["a"])[0], SAVED["a"]) for file in files[-4:])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_descriptors_are_given_back(path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("tells its descriptors otherwise")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        TensorFile(path).read(["a"])
    assert len(list(descriptors.iterdir())) <= before + 1
