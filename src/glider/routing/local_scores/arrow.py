"""Arrow's score: the direction that an adapter amplifies most, against the token (arXiv 2405.11157)."""

from dataclasses import dataclass

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Site
from glider.routing.linear import LinearScores
from glider.routing.local_scores.base import local_score
from glider.routing.spectral import bases
from glider.shapes import Float, Tensor


@local_score("arrow", paper="arXiv:2405.11157")
@dataclass(frozen=True)
class ArrowVectors:
    """|v_e . x| / temperature, v_e the first right singular vector of B_e A_e (Arrow routing).

    The sign of a singular vector means nothing, hence the absolute value. x is not standardised. An adapter whose
    product is zero has no direction, and scores zero.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise RouterError("a temperature above 0", str(self.temperature), "Give one such as 1.")

    def prepare(self, pool: Pool) -> dict[str, Site]:
        sites = {}
        for basis in bases(pool, directions=1):
            first = torch.nn.functional.normalize(basis.rows[:, 0], dim=-1)  # (E, D)
            sites[basis.name] = Site(basis.name, basis.site.absent, {"directions": first})
        return sites

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        scores = (x.float() @ site["directions"].T).abs() / self.temperature
        return scores.masked_fill(site.absent, -torch.inf)

    def linear(self, site: Site) -> LinearScores:
        return LinearScores(site["directions"], self.temperature, absolute=True)
