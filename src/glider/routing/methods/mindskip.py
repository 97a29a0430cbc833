"""MindSkip with Router-Tuning: a trained gate lets tokens skip the experts of a site (arXiv 2410.13184)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar

from glider.experts.pool import Pool
from glider.experts.router_files import read_router
from glider.routing.base import Decision, Prepared, Site, router
from glider.routing.local_scores.joint import width_at
from glider.routing.scores import standardise
from glider.routing.skipping import Skipping
from glider.shapes import Float, Tensor

KIND = "mindskip"


@router("mindskip", paper="arXiv:2410.13184")
@dataclass(frozen=True)
class MindSkip(Skipping):
    """A token uses the experts of a site, by top-2 of any local score, where sigmoid(w . std(x) / sqrt(D) + b) >= tau.

    Elsewhere it skips them (a null expert): the base alone. Only the gates w, b are trained, on few rows, by the
    language model's loss and `penalty` times the share of tokens that use experts, with a straight-through step
    (Router-Tuning). The paper skips whole attention blocks by a gate on the block's mean input; here the base's block
    is always computed, and what is skipped are its experts. `glider pool train-router POOL --router mindskip`. Decided
    in PyTorch; the experts run in any kernel.
    """

    trained: ClassVar[str] = KIND

    def prepare(self, pool: Pool) -> Prepared:
        shapes = {f"{name}.gate": (width_at(pool, name),) for name in pool.sites}
        shapes |= {f"{name}.bias": (1,) for name in pool.sites}
        return self.prepared_with(pool, read_router(pool, KIND, shapes)[0])

    def prepared_with(self, pool: Pool, tensors: Mapping[str, Tensor]) -> Prepared:
        """What the router makes of a pool, with these gates."""
        prepared, count, sites = super().prepare(pool), len(pool), {}
        for name, site in prepared.sites.items():
            gate = {"gate": tensors[f"{name}.gate"].expand(count, -1), "bias": tensors[f"{name}.bias"].expand(count)}
            sites[name] = replace(site, tensors={**site.tensors, **{f"skip.{part}": t for part, t in gate.items()}})
        return replace(prepared, sites=sites)

    def openness(self, site: Site, x: Float[Tensor, "T D"]) -> Float[Tensor, " T"]:
        """How far each token's gate is open."""
        return (standardise(x) @ site["skip.gate"][0] / sqrt(x.shape[-1]) + site["skip.bias"][0]).sigmoid()

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        decision, uses = super().route(site, x, term), self.is_open(self.openness(site, x))
        return Decision(decision.experts, decision.weights * uses[:, None], decision.scores)
