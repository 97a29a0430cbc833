"""Typed settings: one pydantic model per command, saved beside every result."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from glider.errors import ConfigError

EMBEDDED_BASE = "smollm2-135m"
EMBEDDED_EMBEDDER = "all-MiniLM-L6-v2"


class Config(BaseModel):
    """Frozen settings that refuse unknown names and report all their faults together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, **settings: Any):
        """The settings as given, or one `ConfigError` that names every fault."""
        try:
            return cls(**settings)
        except ValidationError as fault:
            raise ConfigError("valid settings", faults(fault), "See --help for the settings.") from fault


def faults(error: ValidationError) -> str:
    """All faults of a pydantic error on one line: `rank: Input should be greater than 0 (got -1)`."""
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'settings'}: {fault['msg']}"
        + (f" (got {str(fault['input'])[:60]})" if fault["type"] != "missing" else "")
        for fault in error.errors()
    )


def cache_directory() -> Path:
    """Where converted models are kept: `$GLIDER_CACHE`, else `$XDG_CACHE_HOME/glider`, else `~/.cache/glider`."""
    import os

    if chosen := os.environ.get("GLIDER_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glider"
