"""SpectR: how strongly each adapter answers a token, by its full spectrum (arXiv 2504.03454)."""

from dataclasses import dataclass

from glider.routing.base import router
from glider.routing.compose import Composed
from glider.routing.local_scores.spectr import SpectralNorm
from glider.routing.select import Select, TopK


@router("spectr", paper="arXiv:2504.03454")
@dataclass(frozen=True)
class Spectr(Composed):
    """score = |S_e V_e^T x| with s_e B_e A_e = U_e S_e V_e^T, then top-2 (spectral routing)."""

    select: Select = TopK(2)

    def local_score(self) -> SpectralNorm:
        return SpectralNorm()
