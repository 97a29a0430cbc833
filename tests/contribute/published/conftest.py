"""A tiny T5, and random experts for it."""

from pathlib import Path
from typing import Any

import pytest
from transformers import T5ForConditionalGeneration

from glider.contribute.published_import import OfficialBase
from glider.inference.base_model import load_base

from .checkpoints import Tensors, random_experts


@pytest.fixture(scope="module")
def model(t5_directory: Path) -> T5ForConditionalGeneration:
    return load_base(str(t5_directory)).model


@pytest.fixture(scope="module")
def base(model: Any, t5_directory: Path) -> OfficialBase:
    return OfficialBase.of(model, t5_directory.name)


@pytest.fixture
def experts(model: Any) -> list[Tensors]:
    return random_experts(model)
