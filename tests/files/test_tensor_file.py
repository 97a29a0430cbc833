"""Tensors read from a map of their file: whatever their place, without a descriptor held, whole after `release`."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glider.files.tensor_file import TensorFile


def test_tensors_are_what_was_saved_before_and_after_release(tmp_path: Path) -> None:
    saved = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "none": torch.zeros(0, 4), "one": torch.tensor(2)}
    save_file(saved, tmp_path / "t.safetensors")
    file = TensorFile(tmp_path / "t.safetensors")
    read = dict(zip(saved, file.read(saved), strict=True))
    file.release()
    for name, tensor in saved.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_tensor_at_an_odd_place_is_copied_to_an_even_one(tmp_path: Path) -> None:
    """No writer makes such a file; vector instructions on a tensor in it would end the process."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    header += b" " * (1 - (8 + len(header)) % 4)
    (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<4f", 1, 2, 3, 4))
    file = TensorFile(tmp_path / "t.safetensors")
    assert file.header.places["a"][0] % 4 != 0
    (a,) = file.read(["a"])
    assert torch.equal(a, torch.tensor([[1.0, 2.0], [3.0, 4.0]])) and a.data_ptr() % 4 == 0


def test_writing_into_a_tensor_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_file({"a": torch.ones(4)}, path)
    before = path.read_bytes()
    file = TensorFile(path)
    file.read(["a"])[0].zero_()
    file.release()
    assert path.read_bytes() == before and torch.equal(file.read(["a"])[0], torch.ones(4))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="tells its descriptors otherwise")
def test_a_pool_may_have_more_experts_than_a_process_may_have_files(tmp_path: Path) -> None:
    """Python's maps hold a descriptor each: a pool of a thousand would end at the usual limit of 1024."""
    import resource

    path = tmp_path / "t.safetensors"
    save_file({"a": torch.ones(4)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, hard))
    try:
        files = [TensorFile(path) for _ in range(60)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(torch.equal(file.read(["a"])[0], torch.ones(4)) for file in files)
