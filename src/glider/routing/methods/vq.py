"""VQ routing: tokens find their experts by a table over learnt codes (arXiv 2411.19402)."""

from dataclasses import dataclass
from typing import ClassVar

from glider.routing.base import router
from glider.routing.compose import Composed
from glider.routing.local_scores.vq import KIND, CodeTable
from glider.routing.select import Select, TopK


@router("vq", paper="arXiv:2411.19402")
@dataclass(frozen=True)
class Vq(Composed):
    """score = log P(e | code of the token), then top-2: the weights are the shares of a code's tokens.

    VQMoE learns its codes with the model, and a code points at an expert. Here experts are there already: a site's
    codebook is learnt on what the experts' own rows bring there (k-means, then moving averages as in VQ-VAE), and the
    table counts whose tokens fell on each code. Tokens of one code are treated alike, and a decision is a distance and
    a look-up. Experts do not see the codes, as they do in the paper. `glider pool train-router POOL --router vq`.
    Scores run in PyTorch; the experts in any kernel.
    """

    select: Select = TopK(2)
    trained: ClassVar[str] = KIND

    def local_score(self) -> CodeTable:
        return CodeTable()
