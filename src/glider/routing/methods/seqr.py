"""SEQR: the adapter that answers a token strongest, found exactly by QR (arXiv 2509.18093)."""

from dataclasses import dataclass

from glider.routing.base import router
from glider.routing.compose import Composed
from glider.routing.local_scores.seqr import Norms, QRNorm
from glider.routing.select import Select, TopK


@router("seqr", paper="arXiv:2509.18093")
@dataclass(frozen=True)
class Seqr(Composed):
    """argmax over e of |s_e B_e A_e x|, by the QR of B_e; the one expert has weight 1.

    `norms` "white" measures each length against what the adapter gives of white noise, "calibrated" standardises them
    by what `glider pool train-router` measured. The paper leaves open how norms are calibrated: the form (less the
    mean, over the deviation) and the rows (of all experts, in the bare base) are inferred. Scores run in PyTorch; the
    experts in any kernel.
    """

    select: Select = TopK(1)
    norms: Norms = "raw"

    def __post_init__(self) -> None:
        self.local_score()  # refuses bad settings now, not at the first token

    def local_score(self) -> QRNorm:
        return QRNorm(self.norms)
