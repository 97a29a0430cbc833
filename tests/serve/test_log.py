"""The server's log on a terminal: text, whatever a client or an endpoint wrote."""

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from glider.serve.server import _log_to_stderr

HOSTILE = "a\x1b[2Jb\x9b31mc\u202ed\x07\n2026-01-01 INFO forged"
NAMES = ("glider.serve", "uvicorn.error")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the server logs."""
    before = [(logger.handlers, logger.propagate, logger.level) for logger in map(logging.getLogger, NAMES)]
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        _log_to_stderr()
    yield stream
    for logger, (handlers, propagate, level) in zip(map(logging.getLogger, NAMES), before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_message_is_one_line_of_text(log: io.StringIO) -> None:
    """Escape sequences of an endpoint's reply reached the terminal, and a line break made a line of its own."""
    logging.getLogger("glider.serve").warning("the embedder does not answer: %s", HOSTILE)
    lines = log.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("WARNING glider.serve the embedder does not answer: abcd 2026-01-01 INFO forged")


def test_a_traceback_is_text(log: io.StringIO) -> None:
    try:
        raise RuntimeError(HOSTILE)
    except RuntimeError:
        logging.getLogger("glider.serve").error("request %s failed", 3, exc_info=sys.exc_info())
    text = log.getvalue()
    assert "RuntimeError: abcd" in text and not set(text) & set("\x1b\x9b\u202e\x07")
