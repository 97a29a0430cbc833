"""A local score: it computes each expert's score for each token from the tensors prepared for a site."""

from typing import Protocol, runtime_checkable

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.registry import Registry
from glider.routing.base import Site
from glider.shapes import Float, Tensor


@runtime_checkable
class LocalScore(Protocol):
    """Frozen settings of a score of each expert for each token at a site."""

    def prepare(self, pool: Pool) -> dict[str, Site]:
        """Prepare the tensors of each site; raises `RouterError` where an expert lacks what is needed."""
        ...

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        """Minus infinity where an expert is absent."""
        ...


local_scores: "Registry[LocalScore]" = Registry(
    "local score", "glider.local_scores", ("glider.routing.local_scores",), RouterError
)
local_score = local_scores.register
