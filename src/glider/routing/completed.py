"""Methods that need more than a pool: fitting on a few rows, or the results of other routers.

A router's class declares this by attributes, so that evaluation code names no router:

- `fitted_setting`: the setting that `fit` finds on rows; where it is not given, settings are those of the search.
- `results_setting`: the setting that takes each expert's score on the rows that are evaluated.
- `argument_is_path`: what follows the colon is a directory outside the pool.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from glider.data.rows import Row
from glider.experts.pool import Pool
from glider.routing.base import Router, routers


@runtime_checkable
class Fitted(Protocol):
    """A router's class whose settings are found on a few rows of a task; these are its class methods."""

    fitted_setting: str

    def check_fit(self, pool: Pool, **settings: Any) -> None:
        """Raise a `GliderError` for settings of the search, or a pool, with which `fit` cannot work."""
        ...

    def fit(self, base: Any, pool: Pool, rows: Sequence[Row], **settings: Any) -> tuple[Router, dict[str, Any]]:
        """The router fitted to a task's rows on a base model (`BaseModel`), and a record of the search."""
        ...


def fitted(name: str, settings: Mapping[str, Any]) -> Fitted | None:
    """The class that has to be fitted for these settings, or None for a router that is complete."""
    method = _class_of(name)
    if not isinstance(method, Fitted) or method.fitted_setting in settings:
        return None
    return method


def needs_results(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether the router chooses by each expert's score on the very rows that are evaluated."""
    setting = getattr(_class_of(name), "results_setting", None)
    return setting is not None and ":" not in name and setting not in settings


def outside(name: str) -> Path | None:
    """The directory outside the pool that a router reads, or None."""
    _, colon, argument = name.partition(":")
    return Path(argument) if colon and getattr(_class_of(name), "argument_is_path", False) else None


def _class_of(name: str) -> Any:
    head = routers.current(name).partition(":")[0]
    return next((entry.make for entry in routers if entry.name == head), None)
