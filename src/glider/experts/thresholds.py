"""What a pool stores for its verdicts: thresholds and their expected error rates."""

from typing import Literal

from pydantic import Field, model_validator

from glider.config import Config

MIXED, SHARE = 3, 1.0
Nearness = Literal["signal", "descriptions"]  # by which an unsure query's experts are chosen
LARGEST = 1e6  # threshold: beyond it every query would be a stranger, or none


class Thresholds(Config):
    """Thresholds of the margin over everyday requests, made for the experts that are named.

    `false_abstention` is the share of the experts' own held-back queries below `stranger`, `false_acceptance` that of
    everyday requests, each judged without its kind, at or above it.
    """

    stranger: float = Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)
    fits: float = Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)  # of a pool of one expert
    experts: int = Field(MIXED, ge=0)  # that an unsure query mixes; 0: its tokens are routed one by one
    described: int | None = Field(None, ge=0)  # the same for one with a description; None: no difference
    share: float = Field(SHARE, ge=0, le=1)  # of their sum that it gets; 0: the base answers it
    nearest_by: Nearness = "signal"
    false_abstention: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    false_acceptance: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    queries: int = 0  # held-back queries of the experts
    strangers: int = 0  # everyday requests
    names: tuple[str, ...] = ()  # the pool's experts when it was made
    background: str | None = None  # sha256 of the pool's own background; None: the package's
    source: str = ""

    def mixed(self, described: bool) -> int:
        """How many experts an unsure query mixes; 0: its tokens are routed one by one."""
        return self.experts if self.described is None or not described else self.described

    @property
    def most_mixed(self) -> int:
        """Most experts that an unsure query of either kind mixes."""
        return max(self.mixed(described=False), self.mixed(described=True))

    @property
    def leaves_unsure(self) -> bool:
        """Whether the base alone answers every unsure query."""
        return bool(self.experts) and self.share == 0 and self.described != 0

    @property
    def left_to_base(self) -> frozenset[str]:
        """The verdicts of the queries that the base alone answers."""
        return frozenset({"stranger", "unsure"} if self.leaves_unsure else {"stranger"})

    @model_validator(mode="after")
    def _mixes_what_descriptions_choose(self) -> "Thresholds":
        if self.nearest_by == "descriptions" and not self.experts:
            raise ValueError("nearest_by: descriptions chooses the experts of an unsure query, but experts is 0")
        return self
