"""Models with a pool of three experts, of any kind and of Llama alone."""

from pathlib import Path

import pytest

from glider.inference.model import RoutedModel
from glider.inference.spec import load


@pytest.fixture
def model(base_directory: Path, make_pool) -> RoutedModel:
    return load(str(base_directory), make_pool(base_directory, 3).path)


@pytest.fixture
def llama(llama_directory: Path, make_pool) -> RoutedModel:
    return load(str(llama_directory), make_pool(llama_directory, 3).path)
