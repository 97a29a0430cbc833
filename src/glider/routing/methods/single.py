"""One named expert for everything."""

from dataclasses import dataclass

from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.routing.base import router
from glider.routing.static import Static


@router("single")
@dataclass(frozen=True)
class Single(Static):
    """`single:NAME`: the expert NAME for every token, as PEFT alone would apply it."""

    argument: str

    @property
    def experts(self) -> tuple[str, ...]:
        """All that it needs of a pool."""
        return (self.argument,)

    def expert(self, pool: Pool) -> Expert:
        return pool[self.argument]
