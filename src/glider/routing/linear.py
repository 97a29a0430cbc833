"""A declarative decision, linear scores and top-k, which kernels can compute themselves."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from glider.routing.base import Site
from glider.shapes import Float, Tensor


@dataclass(frozen=True)
class LinearScores:
    """rows . x / divisor for each expert; of std(x) in place of x, or the magnitude, where it says so.

    Without rows every expert scores zero. Minus infinity where the site has an expert absent.
    """

    rows: Float[Tensor, "E D"] | None
    divisor: float = 1.0
    standardise: bool = False
    absolute: bool = False


@dataclass(frozen=True)
class LinearTopK:
    """Softmax over all of scores + global term; the k largest, divided by their sum + 1e-6 if `renormalise`."""

    scores: LinearScores
    k: int
    renormalise: bool


@runtime_checkable
class LinearLocal(Protocol):
    """A local score that is linear in the token."""

    def linear(self, site: Site) -> LinearScores: ...


@runtime_checkable
class LinearRouter(Protocol):
    """A router that can declare its decision at a site. The declaration and `route` must agree."""

    def linear(self, site: Site) -> LinearTopK | None:
        """None where the decision is of another kind."""
        ...
