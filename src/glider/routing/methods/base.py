"""No expert at all."""

from dataclasses import dataclass

from glider.experts.pool import Pool
from glider.routing.base import Decision, Prepared, QueryFeatures, Site, router
from glider.routing.condition import Condition
from glider.shapes import Float, Tensor


@router("base")
@dataclass(frozen=True)
class Base:
    """No expert: the base model, bit for bit."""

    def prepare(self, pool: Pool) -> Prepared:
        return Prepared((), {})

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        return Condition.nobody(features.count)

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        raise AssertionError("a router without experts has no sites")
