"""What every command shares on the terminal."""

import os
import warnings

from glider.errors import GliderWarning

_python_lines = warnings.formatwarning


def quiet_libraries() -> None:
    """Keep libraries' chatter off a user's terminal: their deprecations are ours to heed, not the user's."""
    from transformers.utils import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.formatwarning = _one_line
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings speak to the user; where in the code they were given is nothing to one."""
    if issubclass(category, GliderWarning):
        return f"glider: {' '.join(str(message).split())}\n"
    return _python_lines(message, category, filename, lineno, line)
