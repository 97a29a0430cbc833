"""An adapter, the expert that it becomes, and rows."""

import json
from pathlib import Path

import pytest

from glider.contribute.adopt import import_adapter
from glider.experts.expert import Expert
from glider.inference.base_model import load_base

from .adapters import save_adapter


@pytest.fixture
def adapter(llama_directory: Path, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", load_base(str(llama_directory)), target_modules=["q_proj", "up_proj"])


@pytest.fixture
def expert(adapter: Path, llama_directory: Path, tmp_path: Path) -> Expert:
    return import_adapter(adapter, str(llama_directory), tmp_path / "experts" / "ex")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"input": f"say {i}", "output": "x"} for i in range(24)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return tmp_path / "data.jsonl"
