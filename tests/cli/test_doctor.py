"""`glider doctor` says what runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from glider.cli.main import build
from glider.errors import KernelError
from glider.layers.kernels import native

RUNNER = CliRunner()


def told(**settings: Any) -> dict[str, Any]:
    result = RUNNER.invoke(build("doctor"), ["doctor", "--json"], catch_exceptions=False, **settings)
    return json.loads(result.stdout)


def test_the_kernel_that_runs_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIDER_KERNEL", raising=False)
    found = told()
    assert set(found["kernels"]) == {"native", "triton", "torch", "reference"}
    assert found["runs"] == ("torch" if native.extension() is None else "native")
    assert found["versions"]["torch"]
    if native.extension() is not None:
        assert found["instruction_set"] in found["instruction_sets"]
        assert found["native_threads"] == found["threads"]


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIDER_KERNEL", raising=False)
    monkeypatch.setattr(native, "extension", lambda: None)
    found = told()
    assert found["runs"] == "torch" and "not built" in found["why"] and "not built" in found["kernels"]["native"]
    assert found["instruction_sets"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_triton_kernel_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIDER_KERNEL", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET")
    installed = told()["versions"]["triton"] is not None
    assert ("there is no GPU" if installed else "triton is not installed") in told()["kernels"]["triton"]
    monkeypatch.setenv("GLIDER_KERNEL", "triton")
    with pytest.raises(KernelError, match=r"the triton kernel; got (there is no GPU|triton is not installed)"):
        told()


def test_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIDER_KERNEL", "reference")
    assert told()["runs"] == "reference"
    monkeypatch.setenv("GLIDER_KERNEL", "none")
    with pytest.raises(KernelError, match="GLIDER_KERNEL"):
        told()


def test_where_the_embedded_base_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other tools, such as PEFT, want its directory."""
    monkeypatch.setattr("glider.demo.base.converted_place", lambda: tmp_path)
    assert told()["embedded_base"] is None
    (tmp_path / "config.json").write_text("{}")
    assert told()["embedded_base"] == str(tmp_path)


def test_the_table() -> None:
    result = RUNNER.invoke(build("doctor"), ["doctor"], catch_exceptions=False)
    for word in ("torch", "threads", "kernel native", "runs", "embedded base"):
        assert word in result.stdout
