"""The two fixed choices: one named expert for everything, or none."""

from dataclasses import dataclass

import torch

from glider.experts.pool import Pool
from glider.routing.base import Decision, Prepared, Site, router
from glider.shapes import Float, Tensor


@router("single")
@dataclass(frozen=True)
class Single:
    """`single:NAME`: the expert NAME for every token, as PEFT alone would apply it."""

    argument: str

    def prepare(self, pool: Pool) -> Prepared:
        expert = pool[self.argument]
        present = torch.zeros(1, dtype=torch.bool)
        return Prepared((expert,), {site: Site(site, None, present) for site in expert.sites})

    def condition(self, prepared: Prepared, queries: Float[Tensor, "B G"]) -> None:
        return None

    def route(self, site: Site, x: Float[Tensor, "T D"], condition: Float[Tensor, "T E"] | None) -> Decision:
        tokens = x.shape[0]
        only = torch.zeros(tokens, 1, dtype=torch.long, device=x.device)
        return Decision(only, torch.ones(tokens, 1, device=x.device))


@router("base")
@dataclass(frozen=True)
class Base:
    """No expert: the base model, bit for bit."""

    def prepare(self, pool: Pool) -> Prepared:
        return Prepared((), {})

    def condition(self, prepared: Prepared, queries: Float[Tensor, "B G"]) -> None:
        return None

    def route(self, site: Site, x: Float[Tensor, "T D"], condition: Float[Tensor, "T E"] | None) -> Decision:
        raise AssertionError("a router without experts has no sites")
