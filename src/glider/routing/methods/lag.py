"""LAG: Arrow filters, SpectR ranks (arXiv 2507.05346)."""

from dataclasses import dataclass

from glider.routing.base import router
from glider.routing.compose import Composed
from glider.routing.local_scores.lag import FilteredNorm
from glider.routing.select import Select, TopK


@router("lag", paper="arXiv:2507.05346")
@dataclass(frozen=True)
class Lag(Composed):
    """The best by SpectR's |A'_e x| of the `candidates` experts that are best by Arrow's |v_e . x|, for each token.

    For pools of hundreds: with no more experts than candidates it is `spectr(top_k=1)`. The paper leaves open how many
    pass the filter: 20 candidates are inferred. Scores run in PyTorch; the experts in any kernel.
    """

    select: Select = TopK(1)
    candidates: int = 20

    def __post_init__(self) -> None:
        self.local_score()  # refuses bad settings now, not at the first token

    def local_score(self) -> FilteredNorm:
        return FilteredNorm(self.candidates)
