"""Announces, once, a model that transformers is about to download."""

import os
from pathlib import Path

from glider.terminal import console


def tell_of_download(source: str) -> None:
    """Say on stderr where a hub model will be stored, if it is not there yet; the hub's own bars show its size."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import enable_progress_bars

    if Path(source).exists() or constants.HF_HUB_OFFLINE:
        return
    if isinstance(try_to_load_from_cache(source, "config.json"), str):
        return
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
        enable_progress_bars()
    console(stderr=True).print(f"First use of {source}: it is downloaded once, into {constants.HF_HUB_CACHE}.")
