"""Typed settings: one pydantic model per command, saved beside every result."""

from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from glider.errors import ConfigError
from glider.printable import printable

EMBEDDED_BASE = "smollm2-135m"
EMBEDDED_EMBEDDER = "all-MiniLM-L6-v2"
_Value = TypeVar("_Value", bound=Hashable)


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


def faults(error: ValidationError, most: int = 8) -> str:
    """The faults of a pydantic error on one line: `rank: Input should be greater than 0 (got -1)`; of many the first,
    and how many more there are."""
    messages = [
        f"{printable('.'.join(str(part) for part in fault['loc'][:8])) or 'settings'}: {printable(fault['msg'])}"
        + (f" (got {printable(_start(fault['input']), 60)})" if fault["type"] != "missing" else "")
        for fault in error.errors(include_url=False, include_context=False)[:most]
    ]
    more = error.error_count() - len(messages)
    return "; ".join(messages) + (f"; and {more} more" if more else "")


def _start(value: Any) -> str:
    """The beginning of what a value looks like, without writing out all of a large one."""
    if isinstance(value, str):
        return value[:80]
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value)}" if len(value) > 20 else str(value)[:80]
    return str(value)[:80]


def repeated(values: Iterable[_Value]) -> list[_Value]:
    """The values that stand more than once, each one time, in the order in which they first stand."""
    return [value for value, count in Counter(values).items() if count > 1]


def cache_directory() -> Path:
    """Where converted models are kept: `$GLIDER_CACHE`, else `$XDG_CACHE_HOME/glider`, else `~/.cache/glider`."""
    import os

    if directory := os.environ.get("GLIDER_CACHE"):
        return Path(directory)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glider"
