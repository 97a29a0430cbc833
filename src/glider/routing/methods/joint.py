"""A linear router at every site, trained on the rows of all experts together (arXiv 2403.07816, 2405.13053)."""

from dataclasses import dataclass
from typing import ClassVar

from glider.routing.base import router
from glider.routing.compose import Composed
from glider.routing.local_scores.joint import KIND, JointRows
from glider.routing.select import Select, TopK


@router("joint", paper="arXiv:2403.07816, arXiv:2405.13053")
@dataclass(frozen=True)
class Joint(Composed):
    """score = std(x) . u_e / sqrt(D), then top-2; u_e trained with everything else frozen, on all experts' rows.

    Branch-Train-MiX and MeteoRA train routers of this form (W x, softmax of the top-k) by the language model's loss;
    MeteoRA at every adapted linear layer, as here, BTX with its experts and a loss for balance, which this has not.
    x is standardised, and training begins at the experts' gates where they have them. `glider pool train-router POOL
    --router joint`. Runs whole in the native kernel.
    """

    select: Select = TopK(2)
    trained: ClassVar[str] = KIND

    def local_score(self) -> JointRows:
        return JointRows()
