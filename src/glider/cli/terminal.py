"""What every command shares on the terminal."""

import os
import warnings


def quiet_libraries() -> None:
    """Keep libraries' chatter off a user's terminal: their deprecations are ours to heed, not the user's."""
    from transformers.utils import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
