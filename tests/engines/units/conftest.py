"""The two front ends over the embedded pool."""

import pytest

from glider.engines.vllm.arguments import plugin_settings
from glider.engines.vllm.front import Front
from glider.inference.spec import ModelSpec


@pytest.fixture(scope="module")
def select() -> Front:
    return Front(plugin_settings(ModelSpec(), "select"))


@pytest.fixture(scope="module")
def route() -> Front:
    return Front(plugin_settings(ModelSpec(), "route"))
