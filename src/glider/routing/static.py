"""Methods without routing: one expert for every token, found or merged once, and free to fold into the base."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from glider.experts.expert import ExpertLike
from glider.experts.pool import Pool
from glider.experts.sites import ExpertSite
from glider.files.dtypes import name_of
from glider.routing.base import Decision, Prepared, QueryFeatures, Site
from glider.routing.condition import Condition
from glider.routing.linear import LinearScores, LinearTopK
from glider.shapes import Float, Tensor


@dataclass(frozen=True)
class MergedExpert:
    """An expert in memory. `pairs` maps a site to its `A` (R, D) and `B` (O, R), scalings already within `B`."""

    name: str
    pairs: Mapping[str, tuple[Float[Tensor, "R D"], Float[Tensor, "O R"]]]

    @property
    def sites(self) -> dict[str, ExpertSite]:
        return {
            site: ExpertSite(a.shape[0], a.shape[1], b.shape[0], False, name_of(torch.promote_types(a.dtype, b.dtype)))
            for site, (a, b) in self.pairs.items()
        }

    def factors(self, site: str) -> tuple[Float[Tensor, "R D"], Float[Tensor, "O R"]]:
        return self.pairs[site]

    def scaling(self, site: str) -> float:
        return 1.0


class Static:
    """A router that makes one expert from a pool and uses it for every token; subclasses define `expert`."""

    def expert(self, pool: Pool) -> ExpertLike:
        """The one expert; raises `RouterError` or `PoolError` where the pool does not give one."""
        raise NotImplementedError

    def prepare(self, pool: Pool) -> Prepared:
        expert = self.expert(pool)
        present = torch.zeros(1, dtype=torch.bool)
        return Prepared((expert,), {site: Site(site, present) for site in expert.sites})

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        return Condition.local(features.count)

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        only = torch.zeros(x.shape[0], 1, dtype=torch.long, device=x.device)
        return Decision(only, torch.ones(x.shape[0], 1, device=x.device))

    def linear(self, site: Site) -> LinearTopK:
        """The softmax over one expert, whatever its score, is 1."""
        return LinearTopK(LinearScores(None), k=1, renormalise=False)
