"""Arrow: the direction each adapter amplifies most is its prototype (arXiv 2405.11157)."""

from dataclasses import dataclass

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Site, router
from glider.routing.compose import Composed
from glider.routing.linear import LinearScores
from glider.routing.select import Select, TopK
from glider.routing.spectral import bases
from glider.shapes import Float, Tensor


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
            sites[basis.name] = Site(basis.name, first, basis.site.absent)
        return sites

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        assert site.vectors is not None
        scores = (x.float() @ site.vectors.T).abs() / self.temperature
        return scores.masked_fill(site.absent, -torch.inf)

    def linear(self, site: Site) -> LinearScores:
        return LinearScores(site.vectors, self.temperature, absolute=True)


@router("arrow", paper="arXiv:2405.11157")
@dataclass(frozen=True)
class Arrow(Composed):
    """score = |v_e . x| / temperature, v_e the first right singular vector of B_e A_e, then top-2 (Arrow routing).

    The paper and PEFT take the softmax over the k kept scores only. Ours is over all, divided by the sum of the kept:
    the same weights, as exp(s_i) / sum over kept exp(s_j) is what both come to.
    """

    select: Select = TopK(2)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        ArrowVectors(self.temperature)  # refuses a bad temperature now, not at the first token

    @property
    def local(self) -> ArrowVectors:
        return ArrowVectors(self.temperature)
