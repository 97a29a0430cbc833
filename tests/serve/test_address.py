"""The address that a server listens at."""

import pytest

from glider.errors import ConfigError
from glider.serve.server import _begin, _listen
from glider.serve.settings import ServeSettings


def test_an_address_that_is_taken_is_one_error():
    with _listen(ServeSettings(port=0)) as first:
        first.listen()
        with pytest.raises(ConfigError, match=r"an address to listen at.*in use.*another --host or --port"):
            _listen(ServeSettings(port=first.getsockname()[1]))


def test_of_two_servers_that_load_at_once_the_slower_says_so():
    """Both may bind; the slower ended in a traceback and told of "a file"."""
    with _listen(ServeSettings(port=0)) as first:
        settings = ServeSettings(port=first.getsockname()[1])
        with _listen(settings) as second:
            _begin(first, settings)
            with pytest.raises(ConfigError, match=r"an address to listen at.*in use.*another --host or --port"):
                _begin(second, settings)
