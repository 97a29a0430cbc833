"""The score of a router that was trained on the rows of all experts together (BTX, MeteoRA)."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from glider.experts.pool import Pool
from glider.experts.router_files import read_router
from glider.routing.base import Site, absent_at
from glider.routing.linear import LinearScores
from glider.routing.local_scores.base import local_score
from glider.routing.scores import standardise
from glider.shapes import Float, Tensor

KIND = "joint"


@local_score("joint", paper="arXiv:2403.07816, arXiv:2405.13053")
@dataclass(frozen=True)
class JointRows:
    """std(x) . u_e / sqrt(D), u_e a linear router trained at each site on the rows of all experts."""

    def prepare(self, pool: Pool) -> dict[str, Site]:
        shapes = {name: (len(pool), width_at(pool, name)) for name in pool.sites}
        return sites_of(pool, read_router(pool, KIND, shapes)[0])

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        scores = standardise(x) @ site["rows"].T / sqrt(x.shape[-1])
        return scores.masked_fill(site.absent, float("-inf"))

    def linear(self, site: Site) -> LinearScores:
        return LinearScores(site["rows"].detach(), sqrt(site["rows"].shape[1]), standardise=True)


def sites_of(pool: Pool, rows: Mapping[str, Float[Tensor, "E _"]]) -> dict[str, Site]:
    """Each site with the rows of its router."""
    return {name: Site(name, absent_at(name, pool.experts), {"rows": rows[name]}) for name in pool.sites}


def width_at(pool: Pool, site: str) -> int:
    """Input width of a site."""
    return next(expert.sites[site].in_features for expert in pool if site in expert.sites)
