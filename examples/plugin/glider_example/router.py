"""The experts whose gates are nearest to a token, both standardised, by Euclidean distance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from glider.experts.pool import Pool
from glider.routing.base import Site, absent_at, router
from glider.routing.compose import Composed
from glider.routing.local_scores.base import local_score
from glider.routing.scores import standardise
from glider.routing.select import Select, TopK


@local_score("distance")
class Distance:
    """-|std(x) - std(v_e)| / sqrt(D)."""

    def prepare(self, pool: Pool) -> dict[str, Site]:
        """Named tensors for each site, once."""
        pool.require(gates=True)
        sites = {}
        for name in pool.sites:
            gates = {expert.name: expert.gate(name) for expert in pool if name in expert.sites}
            width = next(gate for gate in gates.values() if gate is not None)
            rows = [gates.get(expert.name) for expert in pool]
            rows = [torch.zeros_like(width) if row is None else row for row in rows]
            stacked = standardise(torch.stack(rows).float())  # (E, D)
            sites[name] = Site(name, absent_at(name, pool.experts), {"gates": stacked})
        return sites

    def scores(self, x: Tensor, site: Site) -> Tensor:
        """(T, D) -> (T, E); minus infinity where an expert has no pair at this site."""
        apart = torch.cdist(standardise(x.float()), site["gates"]) / x.shape[-1] ** 0.5
        return (-apart).masked_fill(site.absent, -torch.inf)


@router("nearest")
@dataclass(frozen=True)
class Nearest(Composed):
    """score = -|std(x) - std(v_e)| / sqrt(D); top-2."""

    select: Select = TopK(2)

    def local_score(self) -> Distance:
        """What scores the experts of a token."""
        return Distance()
