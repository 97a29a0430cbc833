"""The instruction sets of this machine, each in turn."""

from collections.abc import Iterator

import pytest

from glider.layers.kernels import native

_EXTENSION = native.extension()


@pytest.fixture(params=_EXTENSION.isas() if _EXTENSION is not None else [])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native kernel by one of them."""
    assert _EXTENSION is not None
    before = _EXTENSION.isa()
    _EXTENSION.use_isa(request.param)
    yield request.param
    _EXTENSION.use_isa(before)
