"""What a pool stores for its verdicts: thresholds and their expected error rates."""

from typing import Literal

from pydantic import Field, model_validator

from glider.config import Config

MIXED, SHARE = 3, 1.0
Nearness = Literal["signal", "descriptions"]  # by which an unsure query's experts are chosen
LARGEST = 1e6  # threshold: beyond it every query would be a stranger, or none


class Thresholds(Config):
    """Thresholds of the margin over everyday requests, made for the experts that are named."""

    stranger: float = Field(
        ge=-LARGEST,
        le=LARGEST,
        allow_inf_nan=False,
        description="Margin over everyday requests below which a query is a stranger; an expert's own queries have "
        "about 1 to 2, everyday ones about 0.",
    )
    fits: float = Field(
        ge=-LARGEST,
        le=LARGEST,
        allow_inf_nan=False,
        description="Margin from which a query fits the expert of a pool of one.",
    )
    experts: int = Field(
        MIXED, ge=0, description="Experts that an unsure query mixes. 0: its tokens are routed one by one."
    )
    described: int | None = Field(
        None, ge=0, description="The same for a query with a description. Null: as many as without one."
    )
    share: float = Field(
        SHARE,
        ge=0,
        le=1,
        description="Share of the mixed experts' sum that an unsure query gets. 0: the base answers it.",
    )
    nearest_by: Nearness = Field(
        default="signal", description="What chooses the mixed experts: the global signal, or their descriptions."
    )
    false_abstention: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the experts' own held-back queries below `stranger`. Null: not measured.",
    )
    false_acceptance: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of everyday requests, each judged without its kind, at or above it. Null: not measured.",
    )
    queries: int = Field(default=0, description="Held-back queries of the experts that these were chosen with.")
    strangers: int = Field(default=0, description="Everyday requests that these were chosen with.")
    names: tuple[str, ...] = Field(
        default=(), description="Names of the pool's experts when the thresholds were chosen."
    )
    background: str | None = Field(
        default=None, description="SHA-256 of the pool's own background file. Null: the package's background."
    )
    source: str = Field(default="", description="Where the thresholds come from, in words.")

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
