"""Methods that need more than a pool: the results of other routers, or a directory elsewhere.

A router's class declares this by attributes, so that evaluation code names no router:

- `results_setting`: the setting that takes each expert's score on the rows that are evaluated.
- `argument_is_path`: what follows the colon is a directory outside the pool.

Those that are fitted on a few rows: `contribute/fewshot_fits.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glider.routing.base import routers


def needs_results(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether the router chooses by each expert's score on the very rows that are evaluated."""
    setting = getattr(class_of(name), "results_setting", None)
    return setting is not None and ":" not in name and setting not in settings


def outside(name: str) -> Path | None:
    """The directory outside the pool that a router reads, or None."""
    _, colon, argument = name.partition(":")
    return Path(argument) if colon and getattr(class_of(name), "argument_is_path", False) else None


def class_of(name: str) -> Any:
    """The class, or another maker, that is registered under a router's name; None for an unknown name."""
    head = routers.current(name).partition(":")[0]
    return next((entry.make for entry in routers if entry.name == head), None)
